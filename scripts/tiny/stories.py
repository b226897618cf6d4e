"""Short stories from a grammar: one hero, one friend, one thing that matters, and a worry that ends well.

Every sentence is grammatical by construction, and names, pronouns, the place and the thing stay the same through a
story, so that a model of a few million parameters has something consistent to learn. A story has 60 to 180 words.
"""

import random
from dataclasses import dataclass

from tiny.grammar import articles, expand

_HIS = ("Pip", "Tom", "Finn", "Oscar", "Max", "Leo", "Ben", "Hugo", "Otto", "Sam", "Felix", "Jasper", "Milo", "Rufus")
_HERS = (
    "Mia",
    "Lily",
    "Luna",
    "Rosie",
    "Nora",
    "Ella",
    "Daisy",
    "Wren",
    "Ivy",
    "Tilly",
    "Hazel",
    "Poppy",
    "Ada",
    "May",
)
_ANIMALS = (
    "fox rabbit mouse bear owl hedgehog squirrel frog duck cat dog turtle goat lamb badger otter mole beaver deer hen "
    "penguin donkey pony sparrow crow wolf lion elephant monkey tiger snail bee pig horse whale cow"
).split()
_MEN = ("boy", "knight", "prince", "king")
_WOMEN = ("girl", "princess", "mermaid", "queen")
_ANYONE = ("dragon", "robot", "wizard", "pirate", "giant", "fairy", "sailor", "baker", "farmer", "painter")

# where the hero lives; what the rest of the story calls it
_PLACES = (
    ("in a quiet forest", "the forest"),
    ("by the wide blue sea", "the beach"),
    ("near a slow river", "the river"),
    ("on a green hill", "the hill"),
    ("in a small village", "the village"),
    ("in an old castle", "the castle"),
    ("beside a silver lake", "the lake"),
    ("at the edge of a meadow", "the meadow"),
    ("on a little farm", "the farm"),
    ("in a busy town", "the town"),
    ("at the foot of a tall mountain", "the mountain"),
    ("on a tiny island", "the island"),
    ("in a deep valley", "the valley"),
    ("at the edge of a warm desert", "the desert"),
    ("in a garden full of roses", "the garden"),
    ("next to an old mill", "the mill"),
)
_COLOURS = ("red", "blue", "green", "yellow", "golden", "silver", "purple", "white", "orange", "striped")
_THINGS = (
    "kite ball hat scarf drum boat lantern bell cup ribbon button coat basket book whistle key map blanket wagon flute "
    "umbrella compass ring feather shell marble"
).split()
_ADJECTIVES = ("little", "young", "small", "brave", "shy", "curious", "kind", "clever", "gentle", "cheerful", "quiet")
_SPOTS = (
    "under the old oak tree",
    "behind the big rock",
    "in the tall grass",
    "near the stone well",
    "beside the wooden bridge",
    "inside a hollow log",
    "under a pile of leaves",
    "by the garden gate",
    "behind the woodpile",
    "on the roof of the shed",
    "at the bottom of the stairs",
    "next to the pond",
)
_FOODS = (
    "bread",
    "apple pie",
    "carrot soup",
    "honey cake",
    "berry jam",
    "pancakes",
    "cheese",
    "plum cake",
    "corn soup",
    "nut cookies",
)
# a skill, how it fails, how it ends
_SKILLS = (
    ("swim", "swallowed a lot of water", "swam all the way to the other side"),
    ("whistle", "made only a thin hiss", "whistled a long and merry song"),
    ("climb", "slid back down again", "stood at the very top"),
    ("skate", "landed on the cold ice", "made a perfect circle"),
    ("dance", "tripped over {his} own feet", "danced until the moon came up"),
    ("read", "mixed up all the letters", "read a whole page aloud"),
    ("juggle", "dropped everything on the ground", "kept three apples in the air"),
    ("sing", "could not find the right notes", "sang a song that made everyone smile"),
    ("row a boat", "went around in circles", "rowed straight across the water"),
    ("paint", "spilled the paint on the floor", "painted a picture of the sunrise"),
    ("bake", "burned the first three loaves", "baked a loaf that smelled like summer"),
    ("tie a knot", "ended up with a tangle", "tied a knot that held in the wind"),
)
# a fear, the small truth behind it
_FEARS = (
    ("the dark", "the dark is only the day with its eyes closed"),
    ("thunder", "thunder is only the sky clapping its hands"),
    ("deep water", "water carries those who lie still and breathe"),
    ("loud noises", "a noise is only a sound that is in a hurry"),
    ("the tall bridge", "a bridge is only a path with a view"),
    ("the wind", "the wind only wants somebody to play with"),
    ("the old cave", "a cave is only a house without a door"),
    ("speaking to strangers", "a stranger is only a friend without a name"),
)
# a thing to build, what goes wrong, what helps
_BUILDS = (
    ("a raft", "it sank", "tied the logs together more tightly"),
    ("a tree house", "the floor fell down", "used longer nails"),
    ("a snowman", "it melted in the sun", "built it in the shade"),
    ("a tower of stones", "it fell over", "put the biggest stones at the bottom"),
    ("a bridge over the stream", "the water washed it away", "used heavy stones instead of sticks"),
    ("a swing", "the rope broke", "took a stronger rope"),
    ("a cart", "a wheel came off", "carved a better wheel"),
    ("a bird house", "the roof leaked", "covered the roof with bark"),
)
# something strange, what it turns out to be
_WONDERS = (
    ("a soft light", "a family of fireflies having a party"),
    ("a strange humming sound", "a bee who was practicing for a concert"),
    ("a trail of tiny footprints", "a lost kitten looking for its mother"),
    ("a little door in a tree", "the home of a very old and very friendly beetle"),
    ("a bottle with a letter inside", "a greeting from a child far across the water"),
    ("a giant egg", "a round white stone that was warm from the sun"),
    ("a song without a singer", "the wind playing in an empty jar"),
    ("a cloud that never moved", "the smoke from the chimney of a kind old woman"),
)
_MORALS = {
    "lost": (
        "Things can be found again when friends look together.",
        "A good friend sees what we have missed.",
        "It is easier to search with four eyes than with two.",
    ),
    "learn": (
        "Nobody is good at something on the first day.",
        "Those who try again every day get there in the end.",
        "Practice is slow, but it works.",
    ),
    "fear": (
        "Being brave means going on while your knees are shaking.",
        "Fear grows small when you look at it closely.",
        "It is fine to be afraid, and it is good to say so.",
    ),
    "build": (
        "A mistake is only the first half of a good idea.",
        "What falls down can be built again, and better.",
        "Two pairs of hands build better than one.",
    ),
    "share": (
        "A shared meal tastes twice as good.",
        "Those who give never stay hungry for long.",
        "There is always enough when everyone gives a little.",
    ),
    "help": (
        "A small kindness can travel a long way.",
        "Nobody is too small to help.",
        "Help comes back when you least expect it.",
    ),
    "wonder": (
        "The world is full of small wonders for those who look.",
        "Curious eyes find the best stories.",
        "Many riddles have a friendly answer.",
    ),
    "quarrel": (
        "A friend is worth more than any toy.",
        "Saying sorry is hard for a moment and good for a long time.",
        "There is room for two in every game.",
    ),
    "seed": (
        "Good things take their time.",
        "Patience is a quiet kind of magic.",
        "Those who can wait will see the flower.",
    ),
    "race": (
        "Winning is nice, but kindness lasts longer.",
        "The best prize is a friend who runs beside you.",
        "It is better to arrive together than to win alone.",
    ),
    "storm": (
        "A small house is big enough for a friend.",
        "No storm is stronger than a warm heart.",
        "The best roof is the one we share.",
    ),
    "gift": (
        "The best gifts come from the heart.",
        "It is not the price that makes a gift shine.",
        "A gift made by hand is never forgotten.",
    ),
}
_OPENINGS = (
    "Once upon a time, {in_place}, there lived a {adj} {k} named {n}.",
    "Once upon a time, there was a {adj} {k} named {n} who lived {in_place}.",
    "Once upon a time, a {adj} {k} named {n} lived {in_place}.",
    "[Long ago|Many years ago|Not so long ago], a {adj} {k} [named|called] {n} lived {in_place}.",
    "There was once a {adj} {k} [named|called] {n} who lived {in_place}.",
    "{n} was a {adj} {k} who lived {in_place}.",
    "{In_place} lived a {adj} {k} [named|called] {n}.",
)
_TRAITS = (
    "{He} [liked|loved] to [sing in the morning|count the stars|listen to the rain|watch the clouds|tell long stories].",
    "Everyone [knew {him}|was fond of {him}], because {he} [always had a kind word|never forgot a birthday|laughed so "
    "easily].",
    "{His} best friend was {f}, a {fadj} {fk} who lived nearby.",
    "Every [morning|evening], {he} [walked|wandered] [around {place}|past the old tree|down to the water] and [hummed a "
    "tune|said hello to the birds|thought about the day].",
    "",
)
_DAYS = (
    "One [sunny|rainy|windy|cold|warm|misty|bright] [morning|afternoon|day]",
    "One day",
    "Early one morning",
    "On the first day of [spring|summer|autumn|winter]",
)
_SAID = "[said|said|answered|replied]"
_ENDINGS = (
    "From that day on, {n} and {f} were [the best of friends|always together|never far apart].",
    "That night, {n} fell asleep with a smile.",
    "And {n} never forgot that day.",
    "Then they walked home together under the [stars|evening sky|golden light].",
    "Everyone {at_place} [talked about it for a long time|was happy for {n}|cheered].",
    "They laughed until [the sun went down|the stars came out|it was time for bed].",
)

# Each plot is a list of sentences; a sentence that starts with "?" is left out half of the time.
_PLOTS: dict[str, tuple[str, ...]] = {
    "lost": (
        "{n} had a {colour} {thing} that {he} [loved very much|took everywhere|had got from {his} grandmother].",
        "{day}, the {thing} was gone.",
        "[{n} looked everywhere, but {he} could not find it.|{He} looked under the bed and behind the door, but it was "
        "not there.]",
        "?{He} felt so sad that {he} [could not eat|sat down and cried|did not want to play].",
        '[Soon|Then|After a while], {his} friend {f} the {fk} came by. "[What is wrong|Why are you so sad|What '
        'happened], {n}?" asked {f}.',
        '"[I have lost my {thing}|My {thing} is gone|I cannot find my {thing} anywhere]," {said} {n}.',
        '"[Do not worry. We will look together|Let us search together|I will help you to find it]," {said2} {f}.',
        "They looked {spot1}, but [there was nothing|they found only a snail|it was not there].",
        "[Then|At last|Finally] they looked {spot2}, and there it was, the {colour} {thing}!",
        '"[Thank you|You are a true friend|I would never have found it alone], {f}!" [said|cried] {n}[, and gave {fhim} a '
        "hug|].",
    ),
    "learn": (
        "More than anything, {n} wanted to learn to {skill}.",
        "{day}, {he} tried it for the first time, but {he} {fail}.",
        "{He} tried [again|a second time|once more], and again {he} {fail}.",
        '?"[I will never learn it|This is too hard for me|I give up]," [said|sighed] {n}.',
        '{f} the {fk} had [watched it all|seen everything]. "[I needed a whole year to learn it|Nobody can do it on the '
        'first day|Try a little every day]," {said2} {f}.',
        '?"[Will you help me|Can you show me|Do you really think so]?" asked {n}. "[Of course|With pleasure|Yes, I will]," '
        "{said2} {f}.",
        "So {n} practiced [every morning|every day|after every breakfast], and {f} [cheered|watched and helped|gave good "
        "advice].",
        "[Some days were hard|There were bad days], but {n} [did not stop|kept going|tried again].",
        "And one [fine|bright|quiet] day, {n} {success}!",
        '"[I did it|Look at me|I can do it]!" cried {n}. "[I knew it|Well done|I am proud of you]," {said2} {f}.',
    ),
    "fear": (
        "{n} was [not afraid of much|brave most of the time], but {he} was afraid of {fear}.",
        "{day}, {f} the {fk} [asked {n} to come along on a trip|invited {n} to a party {at_place}].",
        '"[I cannot come|I would like to, but I cannot|I want to stay at home]," {said} {n}. "I am afraid of {fear}."',
        '{f} did not laugh. "[I was afraid of {fear} too|Everyone is afraid of something|Thank you for telling me]," '
        "{said2} {f}.",
        '"My grandmother told me that {truth}."',
        "{n} thought about it [for a while|all night|for a long time].",
        "[Then|At last] {he} took {f} by the hand, [closed {his} eyes|took a deep breath|counted to three] and went "
        "along.",
        "{His} [heart beat fast|knees were shaking], but nothing bad happened.",
        "[After a while|Soon|Little by little], {n} [even began to smile|was not afraid any more|forgot to be afraid].",
        '?"[That was not so bad,|I did it!|Shall we do it again?]" {said} {n}.',
    ),
    "build": (
        "{day}, {n} had [an idea|a plan]: {he} wanted to build {build}.",
        "{He} worked [all morning|until noon|very hard], but [in the end|then] {broke}.",
        '"[Oh no!|What a pity!|All that work for nothing,]" [sighed|said] {n}[, and sat down on the ground|].',
        '{f} the {fk} heard it and came to look. "[May I help you|What are you building|Can we try together]?" asked {f}.',
        '"[I wanted to build {build}, but {broke}|Yes, please|It is harder than I thought]," {said} {n}.',
        "[The two|The two friends] [made a new plan|started again|drank some tea and thought about it].",
        "This time, they {fixed}.",
        "?{f} [held everything in place|carried the heavy things|sang a working song], and {n} [did the rest|worked "
        "carefully|hummed along].",
        "[When the sun went down|In the evening|At last], it was [done|finished], and it was [better than before|strong "
        "and beautiful|the best one {at_place}].",
        '"[We did it together|I could not have done it alone|Look what we made]!" {said} {n}.',
    ),
    "share": (
        "{day}, {n} made {food}, and the [smell|good smell] went all the way [around {place}|down the path].",
        "{He} was just about to eat when somebody knocked at the door.",
        'It was {f} the {fk}. "[I have not eaten all day|I am so hungry|My cupboard is empty]," {said2} {f}.',
        "{n} looked at the {food}. [It was only enough for one|There was not very much of it].",
        "[But then|Still], {he} smiled and [cut it in two|put out a second plate|pulled up a second chair].",
        '"[Come in and eat with me|Half of it is yours|Please sit down]," {said} {n}.',
        "They ate and talked until [the candle was small|it was late|the moon was high].",
        "?It was the best meal that {n} had ever had.",
        "The next day, {f} came back with [a basket of apples|a big round cake|a pot of honey|a bag of nuts] for {n}.",
        '"[One good thing brings another|This is for you|Now it is my turn]," {said2} {f}.',
    ),
    "help": (
        "{day}, {n} heard [a small voice|somebody calling|a quiet cry] {spot1}.",
        "It was {f}, a {fadj} {fk}, who [was stuck|had hurt {fhis} foot|had lost {fhis} way].",
        '"[Please help me!|Can you help me?|I do not know what to do,]" {said2} {f}.',
        "{n} was [in a hurry|on {his} way to the market|tired], but {he} stopped [at once|and knelt down].",
        '"[Do not be afraid|I am here now|I will not leave you alone]," {said} {n}.',
        "[With great care|Slowly and gently], {he} helped {f} and brought {fhim} home.",
        '?"[How can I ever thank you?|I will not forget this,]" {said2} {f}, and waved for a long time.',
        "[Weeks later|Some days later|When winter came], {n} [lost {his} way in the fog|fell into a ditch|was stuck in "
        "the snow].",
        "And who came along? It was {f}, [with a lantern|with a long rope|with a warm blanket]!",
        '"[Now it is my turn to help|You helped me, and now I help you]," {said2} {f}.',
    ),
    "wonder": (
        "{day}, {n} [saw|found|noticed] something strange {spot1}: {wonder}.",
        '"[What can it be?|How strange!|I must find out what that is,]" [said|whispered] {n}.',
        "{He} ran to {f} the {fk} and told {fhim} everything.",
        '?"[It may be dangerous|Perhaps it is magic]," {said2} {f}, "[but I will come with you|so we had better go '
        'together]."',
        "[Side by side|On tiptoe|With a small lantern], the two [went back to look|crept closer|went to the place].",
        "They [waited|listened|watched] [for a long time|without a sound|very quietly].",
        "[Then|At last|Suddenly] they understood: it was {answer}!",
        "They [laughed out loud|could hardly believe it|looked at each other and smiled].",
        '"[I am glad that we looked,|What a lovely surprise!|This will be our secret,]" {said} {n}.',
    ),
    "quarrel": (
        "{n} and {his} friend {f} the {fk} [did everything together|played together every day].",
        "{day}, they found a {colour} {thing} {spot1}.",
        '"[It is mine|I saw it first]!" cried {n}. "[No, it is mine|No, I saw it first]!" cried {f}.',
        "They [pulled and pulled|shouted at each other], [until it almost broke|until both were red in the face].",
        "Then {f} [ran home|went away] without a word, and {n} was alone with the {thing}.",
        "But [it was no fun to play alone|the {thing} did not make {him} happy].",
        "[The next morning|In the evening], {n} went to {f} and knocked at the door.",
        '"[I am sorry|I was wrong|Please forgive me]," {said} {n}. "[It can belong to both of us|You can have it|Let us '
        'take turns]."',
        '"[I am sorry too|I missed you]," {said2} {f}[, and they hugged|].',
        "From then on, the {thing} belonged to both of them.",
    ),
    "seed": (
        "{day}, {n} found a [tiny|small round|strange] seed {spot1}.",
        "{He} [planted it|put it into the ground] [behind {his} house|in a pot by the window] and gave it some water.",
        "The next morning, {he} [ran to look|went to see], but there was nothing.",
        "{He} looked every day, and every day there was [nothing|only dark earth].",
        '"[It will never grow|Perhaps it is only a stone]," {said} {n} [sadly|with a sigh].',
        '"[Give it time|Wait a little longer|It is working where you cannot see it]," {said2} {f} the {fk}.',
        "So {n} [waited|was patient], and {he} watered the seed [through wind and rain|week after week].",
        "[At last|Then, one morning], a [green|thin green] leaf came out of the ground.",
        "It grew and grew, until it was [a tall sunflower|a rose bush full of red roses|a little apple tree].",
        '"[It was worth the wait|Look how beautiful it is]!" cried {n}, and {f} [clapped|nodded and smiled].',
    ),
    "race": (
        "{day}, there was a big race {at_place}, and {n} wanted to win it.",
        "{He} had [practiced for weeks|run every morning|put on {his} best shoes].",
        '"[Ready, steady, go|Three, two, one, go]!" called the judge, and everyone ran.',
        "{n} was [faster than all the others|soon far ahead|in first place].",
        "But near the end, {he} heard a cry: {f} the {fk} had [fallen|tripped over a root|hurt {fhis} leg].",
        "{n} looked at the finish line. Then {he} looked back at {f}.",
        "[Without another thought|After one short moment], {he} turned around and [helped {f} up|ran back].",
        '"[Lean on me|Come, we will go together]," {said} {n}.',
        "They came in last, [arm in arm|side by side], and [the crowd cheered louder than ever|everybody stood up and "
        "clapped].",
        '?"[You could have won|You were in first place]," {said2} {f}. "[You are my friend|A friend is a better prize]," '
        "answered {n}.",
    ),
    "storm": (
        "{day}, dark clouds came over {place}, and a storm began.",
        "{n} [closed the windows|lit a small fire|sat down under a warm blanket] and listened to the [rain|wind].",
        "[Then|Suddenly] {he} heard a knock at the door.",
        "Outside stood {f}, a {fadj} {fk}, [wet and cold|shaking in the wind].",
        '"[The storm has taken my roof,|I have nowhere to go,|May I come in?]" {said2} {f}.',
        '"[Come in, come in|Of course, come and sit by the fire]!" {said} {n}. "[There is room for two|I will make some '
        'tea]."',
        "[All night|For hours], the storm [roared|shook the trees], but the two [told each other stories|drank hot "
        "tea|sang old songs].",
        "[In the morning|When the sun came up], the sky was [clear|blue] again.",
        "Together they [repaired the roof|built a new house for {f}|picked up the broken branches].",
    ),
    "gift": (
        "It was almost the birthday of {f}, a {fadj} {fk} and the best friend of {n}.",
        "{n} wanted to give {fhim} a {colour} {thing}, but {he} had no money.",
        '"[What shall I do|How can I get one]?" {he} asked {himself}.',
        "{day}, {he} had [an idea|a wonderful idea]: {he} would make one.",
        "{He} [worked|cut and glued|painted and polished] [for three days|every evening], until the {thing} was done.",
        "It was [a little crooked|not perfect], and {n} was [worried|ashamed of it].",
        "But when {f} opened the box, {fhis} eyes [grew big|began to shine].",
        '"[Did you make this for me|You made it yourself]?" asked {f}. "[It is the most beautiful {thing} in the '
        'world|I will keep it forever]!"',
        "{n} [smiled from ear to ear|felt warm inside|was very happy].",
    ),
}


@dataclass(frozen=True)
class Story:
    """A story and what it is about, so that a request for it can be written afterwards."""

    text: str
    hero: str  # the hero's kind: "fox"
    name: str
    friend: str  # the friend's kind
    place: str  # "the forest"
    theme: str  # the key of its plot
    thing: str | None  # "kite", where the plot has one


def write(rng: random.Random) -> Story:
    """One story; the same state of `rng` gives the same story."""
    slots, theme = _cast(rng), rng.choice(list(_PLOTS))
    plot = _PLOTS[theme]
    sentences = [_opening(rng, friend_is_new=any("{f}, a" in sentence for sentence in plot))]
    sentences += [s for s in plot if not s.startswith("?") or rng.random() < 0.5]
    if rng.random() < 0.7:
        sentences.append(rng.choice(_ENDINGS))
    if rng.random() < 0.7:
        sentences.append(rng.choice(_MORALS[theme]))
    slots["day"] = expand(rng.choice(_DAYS), rng)
    text = articles(" ".join(expand(sentence.removeprefix("?"), rng, slots) for sentence in sentences))
    has_thing = any("{thing}" in sentence for sentence in plot)
    return Story(
        text, slots["k"], slots["n"], slots["fk"], slots["place"], theme, slots["thing"] if has_thing else None
    )


def heroes() -> list[str]:
    """Every kind of hero."""
    return [*_ANIMALS, *_MEN, *_WOMEN, *_ANYONE]


def names() -> list[str]:
    """Every name."""
    return [*_HIS, *_HERS]


def _opening(rng: random.Random, friend_is_new: bool) -> str:
    """The first sentence and a trait; the friend is mentioned here only where the plot does not introduce them."""
    traits = [trait for trait in _TRAITS if not (friend_is_new and "{f}" in trait)]
    first = rng.choice(_OPENINGS[:3]) if rng.random() < 0.65 else rng.choice(_OPENINGS[3:])
    return f"{first} {rng.choice(traits)}".strip()


def _cast(rng: random.Random) -> dict[str, str]:
    """Who is in it and where: the slots that every sentence of one story shares."""
    in_place, place = rng.choice(_PLACES)
    at = "at " if place in ("the beach", "the river", "the lake", "the mill") else "in "
    at = "on " if place in ("the hill", "the farm", "the mountain", "the island") else at
    skill, fail, success = rng.choice(_SKILLS)
    fear, truth = rng.choice(_FEARS)
    build, broke, fixed = rng.choice(_BUILDS)
    wonder, answer = rng.choice(_WONDERS)
    spot1, spot2 = rng.sample(_SPOTS, 2)
    adj, fadj = rng.sample(_ADJECTIVES, 2)
    hero, friend = _someone(rng, heroes()), _someone(rng, _ANIMALS)
    while friend["n"] == hero["n"] or friend["k"] == hero["k"]:
        friend = _someone(rng, _ANIMALS)
    own = {
        "in_place": in_place, "place": place, "at_place": at + place, "adj": adj, "fadj": fadj,
        "skill": skill, "fail": fail.replace("{his}", hero["his"]), "success": success, "fear": fear, "truth": truth,
        "build": build, "broke": broke, "fixed": fixed, "wonder": wonder, "answer": answer,
        "spot1": spot1, "spot2": spot2,
        "colour": rng.choice(_COLOURS), "thing": rng.choice(_THINGS), "food": rng.choice(_FOODS),
        "said": expand(_SAID, rng), "said2": expand(_SAID, rng),
    }  # fmt: skip
    return own | hero | {"f" if key == "n" else f"f{key}": value for key, value in friend.items()}


def _someone(rng: random.Random, kinds: list[str]) -> dict[str, str]:
    kind = rng.choice(kinds)
    female = kind in _WOMEN or (kind not in _MEN and rng.random() < 0.5)
    he, him, his = ("she", "her", "her") if female else ("he", "him", "his")
    himself = "herself" if female else "himself"
    return {
        "n": rng.choice(_HERS if female else _HIS), "k": kind, "he": he, "him": him, "his": his, "himself": himself,
    }  # fmt: skip
