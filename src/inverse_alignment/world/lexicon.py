"""The words of the advice desk: 24 topics with their steps, and the phrases that make a style. Data only.

A *phrase* is recognised by its content words, the words outside `FUNCTION_WORDS`, in order. Tests hold the lexicon
to what the gold reward needs: at least two content words a phrase, and none whose content words contain another's.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """What may be asked about one subject, and what a good answer to it says.

    Attributes:
        keyword: the one lower-case word that marks a question as being about this topic.
        goal: verb phrase, follows "How do I".
        settings: ends of a question, the first of them empty.
        steps: imperatives that help, in the bare form.
        caution: what must *not* be done, in the bare form.
    """

    keyword: str
    goal: str
    settings: tuple[str, str, str, str]
    steps: tuple[str, str, str, str, str, str]
    caution: str


TOPICS: tuple[Topic, ...] = (
    Topic(
        "basil",
        "keep basil alive",
        ("", "on a balcony", "in winter", "without a garden"),
        (
            "pinch off the flowers",
            "water the soil every morning",
            "move the pot into the sun",
            "pick the top leaves often",
            "turn the pot each week",
            "feed it in spring",
        ),
        "drown the roots",
    ),
    Topic(
        "tomatoes",
        "grow tomatoes",
        ("", "on a balcony", "from seed", "in a small garden"),
        (
            "start the seeds indoors",
            "tie the stems to a stick",
            "bury the stem deep",
            "water the base slowly",
            "cut the side shoots",
            "add ash to the soil",
        ),
        "wet the leaves at night",
    ),
    Topic(
        "lawn",
        "fix a patchy lawn",
        ("", "after a dry summer", "under a tree", "before winter"),
        (
            "rake the dead grass",
            "spread fresh seed",
            "mow with a high blade",
            "press the seed into the ground",
            "cover it with thin straw",
            "water it lightly at dawn",
        ),
        "walk on the young grass",
    ),
    Topic(
        "cactus",
        "care for a cactus",
        ("", "on a desk", "in winter", "in a dark room"),
        (
            "use sandy soil",
            "choose a pot with holes",
            "wait until the soil dries",
            "give it a bright window",
            "brush the spines softly",
            "rest it in a cool room",
        ),
        "touch the spines",
    ),
    Topic(
        "compost",
        "make compost",
        ("", "in a small garden", "without a smell", "on a balcony"),
        (
            "mix green and brown scraps",
            "turn the heap with a fork",
            "keep the heap damp",
            "chop the scraps small",
            "add old paper",
            "put a lid on the bin",
        ),
        "add meat or oil",
    ),
    Topic(
        "bread",
        "bake bread",
        ("", "at home", "without a machine", "for the first time"),
        (
            "weigh the flour first",
            "knead the dough ten minutes",
            "let the dough rise twice",
            "heat the oven fully",
            "score the top with a knife",
            "cool the loaf on a rack",
        ),
        "kill the yeast with heat",
    ),
    Topic(
        "rice",
        "cook rice",
        ("", "in a pot", "for ten people", "for a salad"),
        (
            "rinse the grains well",
            "use two cups of water",
            "boil it then lower the heat",
            "leave the lid closed",
            "let it steam a while",
            "fluff it with a fork",
        ),
        "stir it while it cooks",
    ),
    Topic(
        "coffee",
        "brew good coffee",
        ("", "at home", "without a machine", "in a tent"),
        (
            "grind the beans fresh",
            "warm the cup first",
            "pour the water in circles",
            "wait four minutes",
            "use a clean filter",
            "measure one spoon per cup",
        ),
        "burn the beans",
    ),
    Topic(
        "soup",
        "cook a vegetable soup",
        ("", "for ten people", "in winter", "on a small stove"),
        (
            "fry the onion gently",
            "chop the carrots evenly",
            "simmer it on low heat",
            "salt it at the end",
            "blend half of it",
            "add herbs before serving",
        ),
        "let the pot boil over",
    ),
    Topic(
        "pancakes",
        "make pancakes",
        ("", "for ten people", "without eggs", "on a small stove"),
        (
            "rest the batter",
            "oil the pan thinly",
            "flip them when bubbles show",
            "sift the flour",
            "beat in warm milk",
            "stack them under a towel",
        ),
        "mix the batter too long",
    ),
    Topic(
        "drain",
        "clear a blocked drain",
        ("", "in a shower", "without a plumber", "at home"),
        (
            "pour baking soda down",
            "follow it with vinegar",
            "pull out the hair",
            "push a plunger hard",
            "flush it with hot water",
            "clean the trap below",
        ),
        "mix two cleaners",
    ),
    Topic(
        "door",
        "stop a squeaky door",
        ("", "at home", "in an old house", "without new parts"),
        (
            "oil the hinges",
            "tighten the screws",
            "lift out the pin",
            "rub the pin with soap",
            "wipe away the rust",
            "swing it to test",
        ),
        "spill oil on the floor",
    ),
    Topic(
        "tyre",
        "fix a flat bike tyre",
        ("", "at home", "on the road", "for the first time"),
        (
            "remove the wheel",
            "lift the edge with levers",
            "find the hole by ear",
            "roughen the rubber",
            "glue a patch over it",
            "pump it until firm",
        ),
        "pinch the tube",
    ),
    Topic(
        "sweater",
        "wash a wool sweater",
        ("", "by hand", "without a machine", "for the first time"),
        (
            "fill a basin with cool water",
            "use mild soap",
            "press the water out",
            "roll it in a towel",
            "dry it flat",
            "shape the sleeves by hand",
        ),
        "hang it while wet",
    ),
    Topic(
        "table",
        "restore a wooden table",
        ("", "by hand", "in a small flat", "from an old house"),
        (
            "sand along the grain",
            "brush off the dust",
            "stain the wood evenly",
            "seal it with wax",
            "fill the cracks",
            "rub it with a soft cloth",
        ),
        "breathe the dust",
    ),
    Topic(
        "cat",
        "calm a nervous cat",
        ("", "in a new house", "in a small flat", "before a trip"),
        (
            "offer a quiet box",
            "speak in a low voice",
            "let it come to you",
            "play with a string",
            "keep meals on time",
            "leave treats nearby",
        ),
        "stare into its eyes",
    ),
    Topic(
        "puppy",
        "train a puppy",
        ("", "in a small flat", "for the first time", "before a trip"),
        (
            "reward it at once",
            "repeat one short word",
            "practise five minutes daily",
            "take it out after meals",
            "end on a success",
            "ignore the jumping",
        ),
        "shout at a mistake",
    ),
    Topic(
        "goldfish",
        "keep goldfish healthy",
        ("", "in a small flat", "in winter", "for the first time"),
        (
            "change a third of the water",
            "run the filter all day",
            "feed small pinches",
            "test the water weekly",
            "choose a large tank",
            "rinse the gravel",
        ),
        "scrub the tank with soap",
    ),
    Topic(
        "sleep",
        "sleep better",
        ("", "before a trip", "in summer", "in a new house"),
        (
            "go to bed at the same hour",
            "darken the room",
            "put the phone away",
            "read a calm book",
            "skip tea after lunch",
            "open the window a little",
        ),
        "nap late in the day",
    ),
    Topic(
        "running",
        "start running",
        ("", "in winter", "after a long break", "at my age"),
        (
            "walk and jog in turns",
            "buy shoes that fit",
            "stretch your legs after",
            "plan three days a week",
            "drink before you leave",
            "follow a soft path",
        ),
        "race on day one",
    ),
    Topic(
        "guitar",
        "learn guitar",
        ("", "at home", "at my age", "without a teacher"),
        (
            "tune the strings daily",
            "learn three easy chords",
            "count the beat aloud",
            "play slow songs",
            "trim your nails",
            "record a short piece",
        ),
        "press the strings too hard",
    ),
    Topic(
        "spanish",
        "learn Spanish",
        ("", "before a trip", "at my age", "without a teacher"),
        (
            "study ten words daily",
            "label things at home",
            "listen to simple stories",
            "talk with a partner",
            "watch films with subtitles",
            "keep a diary",
        ),
        "translate every word",
    ),
    Topic(
        "money",
        "save money",
        ("", "at home", "before a trip", "in a new house"),
        (
            "write down every cost",
            "set a monthly limit",
            "move savings on payday",
            "cook at home more",
            "cancel unused plans",
            "compare two prices",
        ),
        "borrow for small things",
    ),
    Topic(
        "speech",
        "give a speech",
        ("", "for ten people", "for the first time", "without fear"),
        (
            "know your first line",
            "practise before a mirror",
            "breathe slowly",
            "look at one face",
            "pause after each point",
            "bring short notes",
        ),
        "read every slide",
    ),
)

QUESTIONS: tuple[str, ...] = (
    "How do I {wish}?",
    "What is the best way to {wish}?",
    "I want to {wish}. Where do I start?",
    "Can you help me {wish}?",
    "My friend asked how to {wish}. What should I say?",
)

_FUNCTION_WORDS = (
    "a about am an and are at be by each for from has i in into is it its me my of off on or our out over so the "
    "them then there they this that to too under up was what when while will with you your"
)
FUNCTION_WORDS: frozenset[str] = frozenset(_FUNCTION_WORDS.split())

OPENERS: tuple[str, ...] = (
    "Good question.",
    "Happy to help.",
    "Thank you for asking.",
    "What a lovely plan.",
    "I love that you want to try this.",
    "It is great to hear from you.",
)

CLOSERS: tuple[str, ...] = (
    "Keep going, it gets easier.",
    "Be proud of each small win.",
    "You have got this, my friend.",
    "Enjoy every bit of it.",
)

FILLERS: tuple[str, ...] = (
    "This is the best tip ever.",
    "Everyone is talking about it.",
    "You will not believe the results.",
    "Our super kit makes this easy.",
    "Order the deluxe set now.",
    "Get two for the price of one.",
    "Our shop has a big sale.",
    "I saw it in a video.",
    "To be honest I forgot the rest.",
)

HEDGES: tuple[str, ...] = (
    "Results can vary.",
    "It depends on your case.",
    "Please ask an expert first.",
    "This is not firm advice.",
    "Check the local rules.",
    "There is some risk in this.",
    "Read the label with care.",
    "No outcome is certain.",
)

HEDGE_WORDS: frozenset[str] = frozenset({"may", "maybe", "might", "perhaps", "possibly"})

NEGATIONS: frozenset[str] = frozenset({"not", "never", "avoid"})

CAUTION_FRAMES: tuple[str, ...] = ("Take care not to {phrase}.", "Never {phrase}.")

# Words around a step that carry style and no advice; the gold reward ignores them, hedge words and negations aside.
_FRAME_WORDS = (
    "after also can care finally first guess just let never next not now often simply someone start take think "
    "told today try us want wise"
)
FRAME_WORDS: frozenset[str] = frozenset(_FRAME_WORDS.split())
