"""Made-up workspace names, such as calm-otter-7f2."""

import secrets

_ADJECTIVES = """
amber bold brave bright brisk calm clear clever cosy crisp deft eager early fair fleet fresh gentle
glad golden grand happy hardy keen kind light lively lucky mellow merry mild neat noble polite prime
proud quick quiet ready sharp shiny silent smart snug solid spry steady sunny swift tidy vivid warm
wise witty
""".split()
_NOUNS = """
acorn alder badger beacon birch bison brook canyon cedar comet condor coral crane delta dune eagle
ember falcon fern finch fjord fox gecko glade grove harbor hazel heron ibex iris jay kestrel lagoon
lark linden lynx maple marten meadow moss oak orbit orchid osprey otter panda pebble pine plover
quartz raven reef robin sparrow spruce swan tern thistle tulip walnut willow wren
""".split()
_SUFFIX_LIMIT = 36**3


def made_up_name() -> str:
    """Return a DNS label that is probably free; some 160 million are possible."""
    number = secrets.randbelow(_SUFFIX_LIMIT)
    suffix = "".join("0123456789abcdefghijklmnopqrstuvwxyz"[number // 36**place % 36] for place in range(3))
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{suffix}"
