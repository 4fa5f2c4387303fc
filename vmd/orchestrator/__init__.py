"""Use cases: who may, what is allowed now, what happens, in which order. One file a noun.

Every front door calls these, and gets the same answers. A use case takes the actor first.
"""
