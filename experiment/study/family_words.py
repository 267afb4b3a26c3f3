"""The words that `families.py` makes its texts of. The four splits share no template and no name.

`train` and `dev` are there to work with, `held_out` to judge by; `final` came last, for what `held_out` had been
looked at for.

A name begins with a syllable that only its split has. In templates, `{who}` and the like are drawn for each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "dev", "held_out", "final"]
SPLITS: tuple[Split, ...] = ("train", "dev", "held_out", "final")


@dataclass(frozen=True)
class Attribute:
    """Something that is told of a person, in several wordings, and asked in another.

    Attributes:
        told: Sentences with `{who}` and `{value}`.
        asked: The question, with `{who}`.
        kind: What a value is: `number`, `place` or `date`.
        compared: Asks which of `{who}` and `{other}` has the higher number or the earlier date; None for a place.
    """

    told: tuple[str, ...]
    asked: str
    kind: Literal["number", "place", "date"]
    compared: str | None = None


@dataclass(frozen=True)
class Words:
    """The words of one split.

    Attributes:
        starts: First syllables of names; no other split has them.
        middles: Second syllables.
        ends: Last syllables.
        attributes: For a single fact.
        visits: Sentences that tell one of several facts, with `{who}` and `{value}`.
        visits_asked: The question for all of them.
        columns: Of a table: the key, then three kinds of values.
        row: A line of the table, with `{0}` to `{3}`.
        table_asked: The question, with `{column}` and `{key}`.
        labels: What lines are about: a label and the sentences that mean it.
        line: A line, with `{day}`, `{who}` and `{text}`.
        labelled: A line that names its label, with `{label}` as well.
        count_asked: How many lines of `{who}` have a `{label}`.
        number_asked: How many lines mean a `{label}`; `{labels}` are all.
        most_asked: Which of the `{labels}` most lines mean.
        pairs_asked: Which two people both wrote `{least}` lines or more that mean a `{label}`.
        filler: Sentences that matter to nobody.
    """

    starts: tuple[str, ...]
    middles: tuple[str, ...]
    ends: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    visits: tuple[str, ...]
    visits_asked: str
    columns: tuple[str, str, str, str]
    row: str
    table_asked: str
    labels: dict[str, tuple[str, ...]]
    line: str
    labelled: str
    count_asked: str
    number_asked: str
    most_asked: str
    pairs_asked: str
    filler: tuple[str, ...]


WORDS: dict[Split, Words] = {
    "train": Words(
        starts=("Bol", "Dun", "Kel", "Vor", "Tes", "Bri", "Hal", "Wen", "Dra", "Lin", "Pet", "Gro"),
        middles=("ka", "mo", "ri", "ta", "ne", "lu", "so", "vi"),
        ends=("n", "sk", "ra", "th", "mel", "dow"),
        attributes=(
            Attribute(
                (
                    "{who} keeps the winter coats in locker {value}.",
                    "Locker {value} has belonged to {who} since the gymnasium was built.",
                    "When the lockers were handed out, number {value} went to {who}.",
                ),
                "What is the number of {who}'s locker?",
                "number",
                "Whose locker has the higher number, {who}'s or {other}'s? Give the name alone.",
            ),
            Attribute(
                (
                    "{who} grew up in {value} and still has the accent.",
                    "The childhood of {who} was spent in {value}, above a bakery.",
                    "It was in {value} that {who} went to school and learned to swim.",
                ),
                "In which town did {who} grow up?",
                "place",
            ),
            Attribute(
                (
                    "{who} retired on {value} with a short speech.",
                    "The last working day of {who} was {value}.",
                    "On {value} the office said goodbye to {who}, who has not been back.",
                ),
                "On what date did {who} retire?",
                "date",
                "Which of the two retired earlier, {who} or {other}? Give the name alone.",
            ),
        ),
        visits=(
            "{who} spent a summer in {value} mending boats.",
            "In {value} people still speak of the week that {who} stayed at the inn.",
            "A postcard from {value} shows {who} beside a fountain.",
        ),
        visits_asked="Which towns has {who} been to? Give their names, separated by commas, and nothing else.",
        columns=("plant", "shelf", "weight", "price"),
        row="{0},{1},{2},{3}",
        table_asked="In the list of plants, what is the {column} of {key}? Give the value alone.",
        labels={
            "complaint": (
                "The kettle arrived broken and nobody answers the telephone.",
                "I have waited five weeks for a lid, and I am angry.",
                "This toaster is the worst thing I ever paid for.",
            ),
            "praise": (
                "The new lamp is a joy, thank you all.",
                "Never had better service, my mother is delighted.",
                "What a lovely chair, we could not be happier.",
            ),
            "question": (
                "Could you tell me whether the shop opens on Sundays?",
                "How long does the glue need to dry?",
                "Which of the two hoses fits the older pump?",
            ),
        },
        line="{day} | {who} | {text}",
        labelled="{day} | {who} | {label} | {text}",
        count_asked="How many letters from {who} are filed as {label}? Give the number alone.",
        number_asked=(
            "Every line is a letter of one of these kinds, though the kind is not written there: {labels}. "
            "How many letters are of the kind {label}? Give the number alone."
        ),
        most_asked=(
            "Every line is a letter of one of these kinds, though the kind is not written there: {labels}. "
            "Of which kind are there the most? Give the kind alone."
        ),
        pairs_asked=(
            "Every line is a letter of one of these kinds, though the kind is not written there: {labels}. "
            "Which pairs of people both sent at least {least} letters of the kind {label}? "
            "Write a pair as: name & name, put semicolons between the pairs, and write nothing else."
        ),
        filler=(
            "{who} wrote to {who2} about the harbour near {place} and had no answer for {n} days.",
            "On {day} the school was closed, and {n} people were told by post.",
            "The orchard cost {n} crowns, which {who} thought a fair price.",
            "It rained in {place} until {day}, and the market stayed shut.",
            "{who} has {n} sheep; {who2} has none and is content.",
        ),
    ),
    "dev": Words(
        starts=("Sol", "Qua", "Zen", "Mir", "Tov", "Eck", "Rud", "Yal", "Nim", "Cor", "Fas", "Gut"),
        middles=("ba", "do", "fi", "ga", "he", "ju", "po", "wi"),
        ends=("s", "nt", "la", "ck", "ver", "tun"),
        attributes=(
            Attribute(
                (
                    "The licence plate of {who} ends in {value}.",
                    "Whoever sees a car whose plate ends in {value} should greet {who}.",
                    "{who} asked for a plate ending in {value}, and got it.",
                ),
                "Which digits does {who}'s licence plate end in?",
                "number",
                "Of {who} and {other}, whose licence plate ends in the larger number? Only the name.",
            ),
            Attribute(
                (
                    "{who} runs a bicycle workshop in {value}.",
                    "The workshop that {who} opened in {value} mends bicycles.",
                    "For a bicycle repair in {value} one goes to {who}.",
                ),
                "In which town is {who}'s bicycle workshop?",
                "place",
            ),
            Attribute(
                (
                    "{who} was married on {value} in the rain.",
                    "The wedding of {who} took place on {value}.",
                    "Guests remember {value} as the day {who} married.",
                ),
                "When was {who}'s wedding?",
                "date",
                "Who was married first: {who} or {other}? Only the name.",
            ),
        ),
        visits=(
            "{who} plays the organ in {value} at Easter.",
            "The organ of {value} is played by {who} now and then.",
            "Whoever wants to hear {who} at the organ may go to {value}.",
        ),
        visits_asked="In which towns does {who} play the organ? Give the names alone, separated by commas.",
        columns=("ship", "berth", "crew", "length"),
        row="| {0} | {1} | {2} | {3} |",
        table_asked="According to the harbour's table, what is the {column} of the ship {key}? Only the value.",
        labels={
            "illness": (
                "My throat hurts and I shall stay in bed.",
                "The doctor says it is the flu, sorry.",
                "I have a fever and cannot come in.",
            ),
            "travel": (
                "The train is late and I stand on the platform.",
                "I land at noon and take a taxi from the airport.",
                "We are still on the motorway behind a lorry.",
            ),
            "money": (
                "Please pay the invoice before Friday.",
                "The bank has raised its fees once more.",
                "I transferred the rent this morning.",
            ),
            "weather": (
                "It is snowing and the roads are white.",
                "A storm took two tiles off the roof.",
                "The fog is so thick that I cannot see the barn.",
            ),
        },
        line="({day}) {who}: {text}",
        labelled="({day}) {who} [{label}]: {text}",
        count_asked="Count the messages that {who} sent with the mark {label}. Answer with a number only.",
        number_asked=(
            "These messages are each about one of {labels}; you have to tell from what they say. "
            "Count those about {label}. Answer with a number only."
        ),
        most_asked=(
            "These messages are each about one of {labels}; you have to tell from what they say. "
            "What are they about most often? Answer with that word only."
        ),
        pairs_asked=(
            "These messages are each about one of {labels}; you have to tell from what they say. "
            "Find every two senders who both have {least} or more messages about {label}. "
            "Answer only with the pairs, each as name & name, separated by semicolons."
        ),
        filler=(
            "Nobody in {place} remembered the quarry, though {who} had worked there for {n} weeks.",
            "A parcel for {who2} lay at the depot until {day}.",
            "The chapel seats {n}; {who} counted them twice.",
            "Since {day} the ferry to {place} costs {n} pence.",
            "{who} and {who2} share a garden of {n} square metres.",
        ),
    ),
    "held_out": Words(
        starts=("Aba", "Ily", "Oru", "Ume", "Ezi", "Pha", "Cho", "Jor", "Xan", "Uly", "Ibe", "Oda"),
        middles=("nor", "mil", "tek", "ras", "vel", "dim", "kos", "bur"),
        ends=("a", "i", "eth", "on", "ux", "am"),
        attributes=(
            Attribute(
                (
                    "At the library {who} reads at desk {value}.",
                    "Desk {value} of the library is the one that {who} always takes.",
                    "The librarian keeps desk {value} free, knowing that {who} will come.",
                ),
                "At which desk of the library does {who} read?",
                "number",
                "Does {who} or {other} read at the desk with the higher number? Just the name.",
            ),
            Attribute(
                (
                    "{who} inherited a vineyard near {value}.",
                    "The vineyard near {value} passed to {who} last spring.",
                    "An uncle left his vines outside {value} to {who}.",
                ),
                "Near which town is the vineyard of {who}?",
                "place",
            ),
            Attribute(
                (
                    "{who} first climbed the mast on {value}.",
                    "The log says that {value} saw {who} at the top of the mast for the first time.",
                    "Until {value} {who} had never dared to climb the mast.",
                ),
                "On which date did {who} climb the mast for the first time?",
                "date",
                "Was it {who} or {other} who first climbed the mast, if one goes by the dates? Just the name.",
            ),
        ),
        visits=(
            "{who} lent money to a miller in {value}.",
            "A miller in {value} still owes {who} a sum.",
            "The debts of the mill in {value} are held by {who}.",
        ),
        visits_asked="In which towns is a miller in debt to {who}? List the towns only, with commas between them.",
        columns=("comet", "observer", "period", "magnitude"),
        row="comet={0}; observer={1}; period={2}; magnitude={3}",
        table_asked="What does the catalogue give as the {column} of the comet {key}? Nothing but the value.",
        labels={
            "sport": (
                "We scored twice in the last minute.",
                "The goalkeeper broke his thumb at training.",
                "She ran the marathon faster than ever.",
            ),
            "cooking": (
                "Add a spoon of salt and stir the soup.",
                "The dough must rest for an hour in a warm place.",
                "I burnt the onions and began again.",
            ),
            "music": (
                "The violin is out of tune.",
                "He sang the second verse an octave lower.",
                "Our choir rehearses the mass on Thursdays.",
            ),
        },
        line="{who} on {day} - {text}",
        labelled="{who} on {day} <{label}> - {text}",
        count_asked="In the diary, {who} has how many entries tagged {label}? Just the number.",
        number_asked=(
            "The diary's entries concern {labels}, one each, without saying which. "
            "What is the number of entries that concern {label}? Just the number."
        ),
        most_asked=(
            "The diary's entries concern {labels}, one each, without saying which. "
            "Which of these do most entries concern? Just its name."
        ),
        pairs_asked=(
            "The diary's entries concern {labels}, one each, without saying which. "
            "Name all pairs of writers with no fewer than {least} entries each that concern {label}: "
            "just the pairs, in the form name & name, with a semicolon after each but the last."
        ),
        filler=(
            "The old bridge at {place} carries {n} carts a day, as {who} noted.",
            "{who2} sold the clock to {who} for {n} ducats on {day}.",
            "Between {place} and the sea there are {n} windmills.",
            "On {day} a goat of {who}'s was seen on the roof.",
            "{who} planted {n} lime trees along the road to {place}.",
        ),
    ),
    "final": Words(
        starts=("Bew", "Cly", "Dov", "Fre", "Gil", "Hux", "Kno", "Mab", "Nor", "Pry", "Rav", "Sti"),
        middles=("an", "el", "im", "ot", "us", "ert", "il", "ov"),
        ends=("by", "combe", "ford", "ley", "sted", "wick"),
        attributes=(
            Attribute(
                (
                    "The parcel for {who} carries docket {value}.",
                    "Docket {value} was made out to {who} by a clerk with a cold.",
                    "{who} signed for docket {value} and left by the side door.",
                ),
                "Which docket belongs to {who}?",
                "number",
                "Compare the dockets of {who} and {other}: who has the higher one? A name is enough.",
            ),
            Attribute(
                (
                    "{who} rents a boat shed in {value}.",
                    "The shed in {value} where {who} keeps a boat has a green door.",
                    "Anybody in {value} can point out the boat shed of {who}.",
                ),
                "Where does {who} rent a boat shed?",
                "place",
            ),
            Attribute(
                (
                    "{who} gave a first concert on {value}.",
                    "It was on {value} that {who} played in public for the first time.",
                    "A programme dated {value} announces the first concert of {who}.",
                ),
                "When did {who} first play in public?",
                "date",
                "Take the first concerts of {who} and {other}: whose was earlier? A name is enough.",
            ),
        ),
        visits=(
            "{who} taught mathematics in {value} for a year.",
            "The school of {value} once had {who} among its teachers.",
            "Former pupils from {value} remember {who} well.",
        ),
        visits_asked="Name the towns where {who} has been a teacher, with commas between them and no other words.",
        columns=("lighthouse", "height", "visitors", "range"),
        row="{0}: {1} / {2} / {3}",
        table_asked="For the lighthouse {key}, which {column} is recorded? Write down just that value.",
        labels={
            "noise": (
                "The drummer next door begins at six in the morning.",
                "Somebody sounds a horn below my window every night.",
                "Their dog has barked since Tuesday.",
            ),
            "litter": (
                "The bins by the pond have not been emptied.",
                "Bottles lie all over the steps again.",
                "Paper bags blow across the playground.",
            ),
            "parking": (
                "A van has blocked my gate for three days.",
                "Cars stand on the pavement outside the bakery.",
                "There was no space left for the doctor.",
            ),
        },
        line="[{who}, {day}] {text}",
        labelled="[{who}, {day}, {label}] {text}",
        count_asked="Of the notes under {label}, how many did {who} write? A number is enough.",
        number_asked=(
            "Each note to the council is about one of {labels}, which it does not name. "
            "How often is {label} the matter? A number is enough."
        ),
        most_asked=(
            "Each note to the council is about one of {labels}, which it does not name. "
            "Which matter comes up most? One word is enough."
        ),
        pairs_asked=(
            "Each note to the council is about one of {labels}, which it does not name. "
            "Which two people have each sent {least} notes or more about {label}? "
            "List all such couples as name & name, with semicolons between them and no other words."
        ),
        filler=(
            "The mill at {place} ground {n} sacks before {day}.",
            "{who} lost {n} buttons to {who2} at cards.",
            "On {day} the ice at {place} bore the weight of {n} skaters.",
            "{who2} painted the fence of {who} for {n} shillings.",
            "There are {n} steps from the quay of {place} to the church.",
        ),
    ),
}
