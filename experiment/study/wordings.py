"""The wordings of one question of `families.py`: the template's, other words, or with a further sentence.

The template's words are in `family_words.py`. No wording and no further sentence belongs to two splits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from family_words import Split

Wording = Literal["template", "reworded", "further sentence"]
WORDINGS: tuple[Wording, ...] = ("template", "reworded", "further sentence")

REWORDED = {
    # train
    "What is the number of {who}'s locker?": "{who} has a locker; which number does it bear?",
    "In which town did {who} grow up?": "Tell me the name of the town of {who}'s childhood.",
    "On what date did {who} retire?": "Find the day on which {who} stopped working for good.",
    "Whose locker has the higher number, {who}'s or {other}'s? Give the name alone.": (
        "Two people have lockers: {who} and {other}. Name the one with the higher number."
    ),
    "Which of the two retired earlier, {who} or {other}? Give the name alone.": (
        "Who stopped working before the other did? Choose between {who} and {other}."
    ),
    "Which towns has {who} been to? Give their names, separated by commas, and nothing else.": (
        "List every town where {who} has stayed or been seen, with commas between the names."
    ),
    "In the list of plants, what is the {column} of {key}? Give the value alone.": (
        "{key} is a plant of the list. Tell me its {column}."
    ),
    "How many letters from {who} are filed as {label}? Give the number alone.": (
        "What is the number of letters that were sent by {who} and filed under {label}?"
    ),
    # dev
    "Which digits does {who}'s licence plate end in?": "Give the last digits of the plate on the car of {who}.",
    "In which town is {who}'s bicycle workshop?": "{who} mends bicycles in some town. What is it called?",
    "When was {who}'s wedding?": "State the date when {who} was married.",
    "Of {who} and {other}, whose licence plate ends in the larger number? Only the name.": (
        "Look at the ends of the plates of {who} and {other}. Which of the two people has the larger one?"
    ),
    "Who was married first: {who} or {other}? Only the name.": (
        "Between the weddings of {who} and {other}, which person's came before?"
    ),
    "In which towns does {who} play the organ? Give the names alone, separated by commas.": (
        "{who} is an organist in several towns. Which are they? Separate them by commas."
    ),
    "According to the harbour's table, what is the {column} of the ship {key}? Only the value.": (
        "Look up the ship {key} in the table of the harbour and give its {column}."
    ),
    "Count the messages that {who} sent with the mark {label}. Answer with a number only.": (
        "{who} marked some messages as {label}. How many are there?"
    ),
    # held_out
    "At which desk of the library does {who} read?": "What number has the desk that {who} uses in the library?",
    "Near which town is the vineyard of {who}?": "The vineyard that {who} owns lies close to a town. Which?",
    "On which date did {who} climb the mast for the first time?": "Which day saw {who} up on the mast first?",
    "Does {who} or {other} read at the desk with the higher number? Just the name.": (
        "Which reader sits at the desk of the higher number: {who}, or else {other}?"
    ),
    "Was it {who} or {other} who first climbed the mast, if one goes by the dates? Just the name.": (
        "Both {who} and {other} once climbed the mast. Whose first climb has the earlier date?"
    ),
    "In which towns is a miller in debt to {who}? List the towns only, with commas between them.": (
        "Millers of which towns owe {who} money? Write the towns, and commas between them."
    ),
    "What does the catalogue give as the {column} of the comet {key}? Nothing but the value.": (
        "For {key}, a comet of the catalogue, read off the {column}."
    ),
    "In the diary, {who} has how many entries tagged {label}? Just the number.": (
        "Work out how often {who} wrote an entry with the tag {label}."
    ),
    # final
    "Which docket belongs to {who}?": "{who} was given a docket. Say what stands on it.",
    "Where does {who} rent a boat shed?": "{who}'s boat is in a rented shed. Name the place where that stands.",
    "When did {who} first play in public?": "I want to know the day of {who}'s debut before an audience.",
    "Compare the dockets of {who} and {other}: who has the higher one? A name is enough.": (
        "Both {who} and {other} hold a docket. The higher number is whose?"
    ),
    "Take the first concerts of {who} and {other}: whose was earlier? A name is enough.": (
        "Somebody played in public before somebody else did: {who} and {other}. Who was the first of them?"
    ),
    "Name the towns where {who} has been a teacher, with commas between them and no other words.": (
        "{who} has taught in more than one town. Write them all down in one line, with commas."
    ),
    "For the lighthouse {key}, which {column} is recorded? Write down just that value.": (
        "The records have a {column} for each lighthouse; I need that of {key}."
    ),
    "Of the notes under {label}, how many did {who} write? A number is enough.": (
        "Please find out the number of notes by {who} that stand under {label}."
    ),
}
"""The other words, by template. Questions of `classify` and `pairs` have none."""

FURTHER: dict[Split, tuple[str, ...]] = {
    "train": ("Do not explain.", "It is for the yearbook.", "Look carefully, as names are alike."),
    "dev": ("Thank you in advance.", "Be sure to read the right line.", "No comments, please."),
    "held_out": ("My editor needs it today.", "Keep it brief.", "Others are told of as well, so take care."),
    "final": (
        "Say no more than you are asked.",
        "I have to put it on a form this afternoon.",
        "The text is long, and much of it concerns other matters.",
    ),
}
"""What stands behind the question; a task's seed chooses."""
