"""The books: one SQLite database, one connection, one thread that owns it.

Every transaction is one function that runs whole on that thread, so a cancelled caller cannot leave half of
it behind and two callers cannot mix. The modules here hold each table's SQL as constants beside the
functions that bind it; those functions are plain, take the transaction first, and are called inside one.
"""
