"""Short stories from a grammar: a hero, a place, a problem, somebody who helps, an end."""

from __future__ import annotations

import random

from tools.guide.grammar import pseudo_word

HEROES = [
    "fox", "cat", "dog", "mouse", "bear", "rabbit", "owl", "hedgehog", "frog", "duck", "turtle", "horse", "goat",
    "sheep", "wolf", "deer", "squirrel", "bee", "ant", "spider", "crow", "hen", "cow", "pig", "lion", "tiger",
    "elephant", "monkey", "penguin", "whale", "fish", "seal", "beaver", "otter", "badger", "donkey", "camel", "snail",
    "butterfly", "sparrow", "swan", "goose", "dragon", "robot", "princess", "prince", "king", "queen", "boy", "girl",
    "baker", "farmer", "fisherman", "wizard", "sailor", "knight", "painter", "gardener", "teacher", "pirate",
    "unicorn", "giant", "ghost", "puppy", "kitten", "dinosaur", "parrot", "dolphin", "hamster",
]  # fmt: skip
NAMES = {
    "he": [
        "Tom", "Max", "Ben", "Leo", "Sam", "Finn", "Otto", "Hugo", "Karl", "Emil", "Noah", "Jack", "Paul", "Rico",
        "Milo", "Felix", "Theo", "Oscar",
    ],
    "she": [
        "Mia", "Anna", "Lily", "Rosa", "Ida", "Nora", "Emma", "Ella", "Clara", "Luna", "Zoe", "Greta", "Maya", "Ruby",
        "Alma", "Tilda", "Vera", "Olga",
    ],
}  # fmt: skip
_KINDS = [
    "small", "young", "old", "clever", "shy", "brave", "curious", "kind", "sleepy", "lonely", "merry", "quiet",
    "hungry", "friendly", "careful",
]  # fmt: skip
_PLACES = [
    "at the edge of a forest", "in a green valley", "near a wide river", "in a quiet village", "on a small island",
    "in an old mill", "under a tall oak", "high in the mountains", "beside a blue lake", "in a garden full of roses",
    "in a house by the sea", "behind the red barn", "in a town with narrow streets", "at the end of a long road",
]  # fmt: skip
_OPENINGS = [
    "Once upon a time there was a {kind} {hero} named {name} who lived {place}.",
    "A {kind} {hero} named {name} lived {place}.",
    "Long ago, {place}, there lived a {kind} {hero} named {name}.",
    "There was once a {kind} {hero} called {name}, and {he} lived {place}.",
]
_PLOTS = [
    ("One {time} {name} lost {his} little golden key and could not open the door.",
     "{He} looked under every stone, but the key was nowhere.",
     "Then a {kind2} {friend} came by and saw something shine in the grass.",
     "It was the key, and the two of them had tea together that very evening."),
    ("One {time} a great storm came and blew away the roof of {his} home.",
     "{Name} sat in the rain and did not know what to do.",
     "A {kind2} {friend} heard of it and brought wood, nails and a warm soup.",
     "Together they built a new roof, and it was stronger than the old one."),
    ("One {time} {name} wanted to cross the river, but the bridge was broken.",
     "{He} was afraid of the cold and deep water.",
     "A {kind2} {friend} showed {him} a row of flat stones a little further on.",
     "Step by step {name} came to the other side and was proud of {himself}."),
    ("One {time} {name} heard somebody cry behind the hedge.",
     "It was a {kind2} {friend} who had lost the way home.",
     "{Name} took a lantern, and they walked through the dark until they saw a light.",
     "At the door they hugged each other, and from that day on they were friends."),
    ("One {time} {name} found a map with a red cross on it.",
     "{He} asked a {kind2} {friend} to come along, and they walked for three days.",
     "Under the cross lay no gold, but a box full of seeds.",
     "They planted them, and in spring the whole place was full of flowers."),
    ("One {time} the well was dry, and nobody had water.",
     "{Name} climbed the hill to look for a spring, although it was hot and far.",
     "On the top a {kind2} {friend} told {him} to dig under the grey rock.",
     "Clear water came out, and everyone at home cheered for {name}."),
    ("One {time} {name} wanted to sing at the feast, but {his} voice was gone.",
     "{He} drank warm milk and rested, and still no sound came.",
     "A {kind2} {friend} said that {he} could play the drum instead.",
     "{Name} played so well that everyone danced until the moon went down."),
    ("One {time} {name} made a kite, but it would not fly.",
     "{He} tried it ten times, and ten times it fell into the mud.",
     "A {kind2} {friend} gave {him} a long blue ribbon for its tail.",
     "Now the kite rose high above the trees, and both of them laughed."),
    ("One {time} snow fell for a whole week, and there was little left to eat.",
     "{Name} had only one apple, and a {kind2} {friend} knocked at the door.",
     "{He} cut the apple in two and gave away the larger half.",
     "When the snow was gone, the {friend} came back with a basket full of apples."),
    ("One {time} {name} could not sleep, because something knocked at the window.",
     "{He} took all {his} courage and opened it a little.",
     "Outside sat a {kind2} {friend} who was only afraid of the dark.",
     "They counted the stars together, and before they came to a hundred both were asleep."),
    ("One {time} {name} decided to see the sea, which {he} knew only from stories.",
     "The way was long, and soon {his} feet were tired.",
     "A {kind2} {friend} with a cart let {him} ride along and told {him} about the waves.",
     "In the evening they stood at the water, and it was even larger than in the stories."),
    ("One {time} {name} broke the lamp that {his} grandmother loved.",
     "First {he} wanted to hide it, but then {he} told the truth.",
     "A {kind2} {friend} helped {him} to glue the pieces, one after the other.",
     "The lamp shone in many colours now, and grandmother liked it better than before."),
]  # fmt: skip
_TIMES = ["morning", "evening", "day", "cold night", "summer day", "winter morning", "rainy day"]
_MORALS = [
    "And so {name} learned that help often comes when one asks for it.", "{Name} never forgot that day.",
    "From then on {he} was never alone again.", "And if you pass by there, you can still hear them laugh.",
    "That night {name} slept well and dreamed of the next day.", "Since then nobody {place2} was sad for long.",
]  # fmt: skip
_ASK = ["tell me a story", "tell me a short story", "a story please", "can you tell me a story", "i want a story",
        "write a story", "write a short story", "make up a story", "i would like to hear a story", "tell a story",
        "give me a short story", "do you know a story", "please tell me a story", "invent a story", "story time",
        "could you write a little story", "a bedtime story please", "read me a story", "a short story"]  # fmt: skip
_MORE = ["another one", "another story", "one more", "tell me another story", "one more story please",
         "tell me another one", "again", "another story please", "a different story"]  # fmt: skip


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def story(rng: random.Random, hero: str | None = None, name: str | None = None, friend: str | None = None) -> str:
    """A story of five or six sentences about the hero, the name and the friend, each drawn where None is given."""
    he = next((pronoun for pronoun, names in NAMES.items() if name in names), None) or rng.choice(["he", "she"])
    if hero in {"princess", "queen", "girl", "hen", "cow"}:
        he = "she"
    elif hero in {"prince", "king", "boy", "knight", "fisherman"}:
        he = "he"
    name = name or rng.choice(NAMES[he])
    hero = hero or rng.choice(HEROES)
    friend = friend or rng.choice([other for other in HEROES if other != hero])
    slots = {
        "hero": hero, "friend": friend, "name": name, "Name": name, "he": he, "He": he.capitalize(),
        "his": {"he": "his", "she": "her"}[he], "him": {"he": "him", "she": "her"}[he],
        "himself": {"he": "himself", "she": "herself"}[he], "time": rng.choice(_TIMES), "place": rng.choice(_PLACES),
        "kind": rng.choice(_KINDS), "kind2": rng.choice(_KINDS), "place2": "in that place",
    }  # fmt: skip
    parts = [rng.choice(_OPENINGS), *rng.choice(_PLOTS)]
    if rng.random() < 0.6:
        parts.append(rng.choice(_MORALS))
    text = " ".join(parts).format(**slots)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text.replace(" an one", " a one").replace(" an unicorn", " a unicorn").replace(" a hundred", " a hundred")


def ask_story(rng: random.Random) -> tuple[str, str, list[str]]:
    """A request in lower case, a story that keeps to it, and the words of the story that the request decides."""
    request, kind = rng.choice(_ASK), rng.random()
    about = f"{request.removesuffix(' please')} about"
    if " story" not in request or kind < 0.35:
        return request, story(rng), []
    if kind < 0.75:
        hero = pseudo_word(rng) if rng.random() < 0.1 else rng.choice(HEROES)
        return f"{about} {_article(hero)}", story(rng, hero=hero), [hero]
    if kind < 0.88:
        name = rng.choice(NAMES[rng.choice(["he", "she"])])
        shown = name if rng.random() < 0.5 else name.lower()
        return f"{about} {shown}", story(rng, name=name), [name]
    hero, friend = rng.sample(HEROES, 2)
    return f"{about} {_article(hero)} and {_article(friend)}", story(rng, hero=hero, friend=friend), [hero, friend]


def ask_another(rng: random.Random) -> tuple[str, str]:
    """A request that follows a story, and another story."""
    return rng.choice(_MORE), story(rng)
