"""Writes data/stories.txt, the text that the small models of the recipes learn: about 400 kB of plain English, and
data/text_prompts.jsonl, 256 lines of it for the recipes that reward a way of writing on.

    python3 scripts/make_text.py            writes the files
    python3 scripts/make_text.py --check    exit code 1 where a file is not what this script writes

The stories come from the word lists and sentence patterns below; nothing is copied from elsewhere. They are ASCII, a
paragraph a line, with headings, notices and shouts in capitals, so that capital letters are a mode of their own that a
model can learn. The same bytes come out on every machine: the generator of the draws is in this file, and the standard
library is used for nothing but files.
"""

import json
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
SIZE = 420_000
NUM_PROMPTS = 256
SEED = 20_240_607

PEOPLE = [(name, "she", "her", "her") for name in
          "Anna Berta Clara Edith Flora Greta Hilda Irma Lena Marta Nora Olga Paula Rosa Tilda Vera".split()]
PEOPLE += [(name, "he", "him", "his") for name in
           "Adam Bruno Carl David Emil Felix Hugo Ivan Jonas Karl Leo Martin Oskar Peter Ruben Simon".split()]
TRADES = ("baker miller carpenter teacher doctor fisher farmer tailor printer gardener smith weaver postman shepherd "
          "clockmaker ferryman librarian painter").split()
ANIMALS = "dog cat goat horse hen goose fox crow owl donkey hare badger swan pony".split()
PLACES = [("in", place) for place in (
    "the kitchen", "the garden", "the barn", "the library", "the forest", "the orchard", "the market", "the old mill",
    "the workshop", "the school", "the cellar", "the town hall", "the boat house", "the valley")]
PLACES += [("at", place) for place in (
    "the harbour", "the station", "the bridge", "the crossroads", "the well", "the lighthouse", "the top of the hill")]
PLACES += [("by", place) for place in (
    "the river", "the lake", "the church wall", "the north gate", "the fire", "the canal", "the sea")]
OPENABLE = ("door gate box chest window letter drawer parcel cupboard trunk jar envelope").split()
TOOLS = ("hammer saw rope spade lantern ladder bucket basket brush needle kettle wheel candle barrel broom blanket "
         "compass map key coin ring bell book clock mirror umbrella whistle violin").split()
FOODS = ("bread cheese soup honey butter milk porridge fish cake jam tea salt flour").split()
FRUITS = "apple plum pear cherry onion carrot potato nut egg bean turnip pumpkin".split()
ADJECTIVES = ("old new small large heavy light broken clean dusty empty full golden green blue red yellow grey narrow "
              "wide round wooden little strange fine plain cold warm bright dark soft sharp rusty polished "
              "forgotten frozen").split()
MOODS = ("happy tired curious worried proud hungry quiet cheerful angry sleepy careful patient nervous calm lonely "
         "thankful puzzled amazed").split()
MANNERS = ["slowly", "quickly", "quietly", "carefully", "gladly", "sadly", "lazily", "at once", "with great care",
           "without a word", "in a hurry", "as usual", "for the first time"]
TRADED = "found lost carried sold bought hid dropped counted forgot kept packed needed wanted liked".split()
HANDLED = TRADED + "cleaned mended painted borrowed showed watched".split()
MOVED = "walked ran went hurried climbed drove rode wandered returned travelled".split()
RESTED = "sat stood waited slept rested stayed".split()
BUSY = RESTED + "worked sang read dozed".split()
WEATHER = [
    "the sun was shining", "it was raining", "snow was falling", "the wind was strong", "the fog was thick",
    "the sky was clear", "a storm was near", "the moon was bright", "the air was cold", "the ice was thin",
    "a breeze was blowing", "the hazel was green", "the leaves were falling", "the birds were singing", "the days were short", "the nights were long"]
TIMES = [
    "in the morning", "in the evening", "at noon", "at night", "on Monday", "on Tuesday", "on Wednesday",
    "on Thursday", "on Friday", "on Saturday", "on Sunday", "in spring", "in summer", "in autumn", "in winter",
    "the next day", "a week later", "after supper", "before breakfast", "an hour later", "long ago", "every year"]
NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PROVERBS = [
    "A slow cart also comes home.", "Every roof is dry until it rains.", "Who counts the waves never sails.",
    "The early hen sees the fox.", "A borrowed coat is never warm enough.", "One candle can light another.",
    "Deep water makes no noise.", "A good rope is older than the knot.", "The road knows no hurry.",
    "Small keys open large doors.", "Salt does not praise itself.", "The last bean also belongs to the pot.",
    "Even the tallest tower begins with a stone.", "A closed window hears nothing.", "Bread asks no questions.",
    "No one owns the wind.", "A patient hand mends the net.", "The mill does not turn with yesterday's water.",
    "He who lends his ladder stays on the ground.", "Two friends carry half a sack each."]
SHOUTS = [
    "STOP!", "COME BACK!", "WAIT FOR ME!", "WHO IS THERE?", "OPEN THE DOOR!", "FIRE! FIRE!", "LOOK OUT!",
    "GIVE IT BACK!", "HELP US!", "NOT SO FAST!", "BRING THE ROPE!", "THE BRIDGE IS GONE!", "EVERYBODY OUT!",
    "I FOUND IT!", "WE ARE SAVED!", "DO NOT MOVE!", "THE WATER IS RISING!", "HURRY UP!", "NEVER!", "AT LAST!"]
CHAPTERS = ("ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN "
            "SEVENTEEN EIGHTEEN NINETEEN TWENTY").split()


class Draws:
    """SplitMix64: 64 bits of state, the same numbers everywhere."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) % n

    def one(self, items):
        return items[self.below(len(items))]

    def some(self, items, n):
        """`n` different items."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]

    def chance(self, percent):
        return self.below(100) < percent


def capital(text):
    return text[0].upper() + text[1:]


def article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def plural(noun):
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun == "potato":
        return "potatoes"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


class Story:
    """One chapter: two or three people, a place, things that come back."""

    def __init__(self, draws):
        self.draws = draws
        self.people = draws.some(PEOPLE, 2 + draws.below(2))
        self.trades = draws.some(TRADES, len(self.people))
        self.animal = draws.one(ANIMALS)
        self.places = draws.some(PLACES, 3)
        self.things = draws.some(TOOLS + OPENABLE, 4)

    # Parts of sentences.

    def place(self):
        return self.draws.one(self.places if self.draws.chance(70) else PLACES)

    def thing(self):
        """A thing of this story, mostly with an adjective."""
        noun = self.draws.one(self.things if self.draws.chance(70) else TOOLS + OPENABLE)
        return f"{self.draws.one(ADJECTIVES)} {noun}" if self.draws.chance(60) else noun

    def goods(self):
        """Something to eat."""
        if self.draws.chance(50):
            return "some " + self.draws.one(FOODS)
        return f"{self.draws.one(NUMBERS)} {plural(self.draws.one(FRUITS))}"

    def what(self):
        kind = self.draws.below(10)
        if kind < 4:
            return "the " + self.thing()
        return article(self.thing()) if kind < 7 else self.goods()

    def act(self, whom):
        """What somebody did; `whom` is somebody else."""
        draws = self.draws
        kind = draws.below(12)
        if kind < 3:
            return f"{draws.one(HANDLED)} {draws.one([article(self.thing()), 'the ' + self.thing()])}"
        if kind < 4:
            return f"{draws.one(TRADED)} {self.goods()}"
        if kind < 6:
            return f"opened the {draws.one(OPENABLE)}"
        if kind < 8:
            return f"{draws.one(MOVED)} to {self.place()[1]}"
        if kind < 9:
            return "{} {} {}".format(draws.one(BUSY), *self.place())
        if kind < 10:
            return f"gave {whom[0]} {self.what()}"
        if kind < 11:
            return f"looked for the {draws.one(self.things)}"
        return f"talked to {whom[0]} about the {draws.one(self.things)}"

    # Sentences.

    def narrative(self):
        draws = self.draws
        first, other = draws.some(self.people, 2)
        trade = self.trades[self.people.index(first)]
        name = f"the {trade}" if draws.chance(15) else first[0]
        act, then = self.act(other), self.act(other)
        kind = draws.below(15)
        preposition, place = self.place()
        sentences = [
            f"{name} {act}.",
            f"{name} {act} and {then}.",
            f"{draws.one(TIMES)}, {name} {act}.",
            f"when {draws.one(WEATHER)}, {name} {act}.",
            f"{name} {act}, because {draws.one(WEATHER)}.",
            f"{name} {act}, but {other[0]} {self.act(first)}.",
            f"{name} was {draws.one(MOODS)} and {draws.one(MOODS)}.",
            f"{preposition} {place}, {name} {act} {draws.one(MANNERS)}.",
            f"the {self.animal} {draws.one(RESTED)} {preposition} {place}.",
            f"there was {article(self.thing())} {preposition} {place}.",
            f"nobody knew why {name} {act}.",
            f"before {first[1]} {draws.one(MOVED)} to {place}, {name} {act}.",
            f"the {draws.one(self.things)} was {draws.one(ADJECTIVES)}, and the {draws.one(self.things)} was "
            f"{draws.one(ADJECTIVES)}.",
            f"{first[0]}, who was the {trade} of the village, {act}.",
            f"{draws.one(TIMES)}, {draws.one(WEATHER)}, and {name} was {draws.one(MOODS)}.",
        ]
        return capital(sentences[kind])

    def paragraph(self):
        draws = self.draws
        sentences = [self.narrative() for _ in range(3 + draws.below(4))]
        if draws.chance(12):
            sentences.append(draws.one(PROVERBS))
        return " ".join(sentences)

    def exchange(self):
        """A question and its answer, with what the answer speaks of."""
        draws = self.draws
        thing, other = draws.some(self.things, 2)
        preposition, place = self.place()
        number = draws.one(NUMBERS)
        fruit = plural(draws.one(FRUITS))
        third = draws.one(PEOPLE)
        return draws.one([
            (f"where is the {thing}?", f"it is {preposition} {place}."),
            (f"do you have the {thing}?", f"no, but I have the {other}."),
            (f"how many {fruit} do you have?", f"I have {number} {fruit}."),
            (f"who took the {thing}?", f"I think {third[0]} took it."),
            ("what did you see?", f"I saw {article(self.thing())} {preposition} {place}."),
            ("why are you so late?", f"because {draws.one(WEATHER)}."),
            (f"is the {thing} {draws.one(ADJECTIVES)}?", f"yes, and it is {draws.one(ADJECTIVES)} too."),
            (f"will you come to {place}?", f"only if {third[0]} comes with us."),
            (f"can you mend the {thing}?", "I can try."),
            ("what shall we do now?", f"let us go to {place} and look for the {other}."),
            (f"did you hear the {self.animal}?", "I heard nothing at all."),
            ("are you hungry?", f"yes, bring me {self.goods()}, please."),
        ])

    def shout(self):
        """Something loud, in capitals."""
        draws = self.draws
        if draws.chance(50):
            return draws.one(SHOUTS)
        thing = draws.one(self.things)
        name = draws.one(self.people)[0]
        place = self.place()
        return draws.one([
            f"{name}, where is the {thing}?", f"put the {thing} down!", f"the {self.animal} is {place[0]} {place[1]}!",
            f"bring {self.goods()} to {place[1]}!", f"somebody stole the {self.thing()}!",
            f"{name}, come here at once!", f"do not open the {draws.one(OPENABLE)}!",
            f"I want the {thing} back!", f"look at the {self.thing()}!", f"{draws.one(WEATHER)}, run!",
        ]).upper()

    def dialogue(self):
        """Some lines of talk, some of them loud."""
        draws = self.draws
        first, second = draws.some(self.people, 2)
        lines, exchanges = [], {}
        for _ in range(1 + draws.below(3)):
            question, answer = self.exchange()
            exchanges.setdefault(question, answer)
        for question, answer in exchanges.items():
            question, answer = capital(question), capital(answer)
            lines.append(f'"{question}" asked {first[0]}.')
            if draws.chance(50):
                lines.append(f'"{answer[:-1]}," said {second[0]}.')
            else:
                lines.append(f'"{answer}"')
            if draws.chance(35):
                verb = draws.one(["shouted", "cried", "called"])
                lines.append(f'"{self.shout()}" {verb} {draws.one(self.people)[0]}.')
        return "\n".join(lines)

    def notice(self):
        """What hangs on a wall: capitals throughout."""
        draws = self.draws
        name, (preposition, place) = draws.one(PEOPLE)[0], self.place()
        day, hour = draws.one(DAYS), 1 + draws.below(12)
        lines = draws.some([
            f"lost: {article(self.thing())}. please bring it to {name} at {place}.",
            f"{place} is closed until {day}, {hour} o'clock.",
            f"for sale: {self.goods()} and {article(self.thing())}. ask for {name}.",
            f"do not feed the {self.animal}.",
            f"on {day} at {hour} the {draws.one(TRADES)} will speak about the {draws.one(self.things)}.",
            f"found {preposition} {place}: {article(self.thing())}.",
            f"wanted: {article(draws.one(TRADES))} who is {draws.one(MOODS)} and {draws.one(MOODS)}.",
        ], 2 + draws.below(2))
        return "NOTICE\n" + "\n".join(line.upper() for line in lines)

    def letter(self):
        draws = self.draws
        writer, reader = draws.some(self.people, 2)
        body = draws.some([
            f"thank you for the {self.thing()}.", f"I am {draws.one(MOODS)}, because {draws.one(WEATHER)}.",
            f"the {self.animal} is well and sends its greetings.", f"please send me {self.goods()}.",
            f"yesterday I {self.act(reader)}.", f"I hope to see you {draws.one(TIMES[:15])}.",
            f"do you still have the {draws.one(self.things)}?", "write soon.",
        ], 4)
        date = f"{1 + draws.below(28)} {draws.one(MONTHS)}"
        return f"{date}\nDear {reader[0]},\n{' '.join(capital(text) for text in body)}\nYours, {writer[0]}"

    def recipe(self):
        draws = self.draws
        fruit, other = draws.some(FRUITS, 2)
        food, more = draws.some(FOODS, 2)
        return (f"To make {fruit} {draws.one(['soup', 'cake', 'pie', 'jam'])}, take {draws.one(NUMBERS)} "
                f"{plural(fruit)}, {draws.one(NUMBERS)} {plural(other)} and some {food}. Wash the {plural(fruit)} and "
                f"cut them into small pieces. Add the {food} and a little {more}. Cook it {draws.one(MANNERS[:4])} for "
                f"{draws.one(NUMBERS)} minutes and serve it {draws.one(['hot', 'warm', 'cold'])}.")

    def text(self, title):
        draws = self.draws
        parts = [title, self.opening()]
        kinds = [self.paragraph] * 5 + [self.dialogue] * 5 + [self.notice, self.letter, self.recipe]
        for _ in range(7 + draws.below(5)):
            parts.append(draws.one(kinds)())
        parts.append(self.ending())
        return "\n\n".join(parts)

    def opening(self):
        draws = self.draws
        (name, *_), (other, *_) = self.people[:2]
        preposition, place = self.places[0]
        start = draws.one([
            f"once there lived {article(self.trades[0])} called {name}, who had {article(self.animal)}.",
            f"{draws.one(TIMES)}, {name} the {self.trades[0]} met {other} the {self.trades[1]} {preposition} {place}.",
            f"this is the story of {name} and {other} and the {draws.one(ADJECTIVES)} {self.things[0]}.",
            f"{draws.one(WEATHER)} when {name} came to {place}.",
        ])
        return capital(start) + " " + self.paragraph()

    def ending(self):
        draws = self.draws
        name = draws.one(self.people)[0]
        return capital(draws.one([
            f"and so the {self.things[0]} came home, and {name} was {draws.one(MOODS)} at last.",
            f"that was the end of it, and nobody {draws.one(HANDLED)} the {self.things[1]} again.",
            f"{name} laughed, the {self.animal} slept, and {draws.one(WEATHER)}.",
            f"since that day {name} has never forgotten the {self.things[0]}.",
        ])) + " " + draws.one(PROVERBS)


def title(draws, story, number):
    thing = draws.one(story.things)
    name = draws.one(story.people)[0]
    words = draws.one([
        f"the {draws.one(ADJECTIVES)} {thing}", f"{name} and the {thing}", f"the {story.animal} of {story.places[0][1]}",
        f"how {name} {draws.one(HANDLED)} the {thing}", f"{story.places[0][0]} {story.places[0][1]}",
    ])
    return f"CHAPTER {CHAPTERS[number % len(CHAPTERS)]}: {words.upper()}"


def make_text():
    """The whole text: chapters until it is long enough."""
    draws = Draws(SEED)
    chapters, size = [], 0
    while size < SIZE:
        story = Story(draws)
        chapters.append(story.text(title(draws, story, len(chapters))) + "\n")
        size += len(chapters[-1]) + 1
    return "\n".join(chapters).encode("ascii")


def make_prompts(text):
    """Lines of 24 to 47 characters from all over the text, each with its line end: what comes next is a new line."""
    lines = [line for line in dict.fromkeys(text.decode("ascii").splitlines())
             if 24 <= len(line) < 48 and not line.isupper()]
    chosen = [lines[i * len(lines) // NUM_PROMPTS] for i in range(NUM_PROMPTS)]
    return "".join(json.dumps({"prompt": line + "\n"}) + "\n" for line in chosen).encode("ascii")


def main():
    text = make_text()
    files = {"stories.txt": text, "text_prompts.jsonl": make_prompts(text)}
    for name, content in files.items():
        path = DATA / name
        if sys.argv[1:] == ["--check"]:
            if not path.is_file() or path.read_bytes() != content:
                sys.exit(f"{path} is not what {Path(__file__).name} writes: run it")
            print(f"{name}: {len(content)} bytes, as written by {Path(__file__).name}")
        elif sys.argv[1:]:
            sys.exit(__doc__)
        else:
            path.write_bytes(content)
            print(f"wrote {len(content)} bytes to {path}")


if __name__ == "__main__":
    main()
