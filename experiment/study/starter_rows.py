"""The runs that start a small model over texts of rows (tables, JSON Lines, CSV), and over the entries of logs.

One value of one row is looked up as in any text; rows are counted, listed and sorted as records. Entries are
lines, which code counts and lists by the words in them. A run over entries among those over rows made a model of
1.5B parameters list the lines of tables for facts.
"""

from __future__ import annotations

import json

from starter_parts import LOOK, LOOK_WORDS, Run, chosen, over_records, over_text

OWNERS = ("Bo Ek", "Ines Roth", "Tam Hale")
PORTS = (
    *("Aldo", "Teal", "Rauma", "Sund", "Hov", "Oulu", "Vik", "Brant", "Kemi", "Moss"),
    *("Narva", "Pori", "Lund", "Eke", "Turo", "Salo", "Viby", "Roda", "Gran", "Holm"),
)
NAMES = (
    *("Tern", "Auk", "Gull", "Mara", "Skua", "Knot", "Teal", "Dunlin"),
    *("Eider", "Brant", "Loon", "Rail", "Ruff", "Smew", "Stint"),
)
FERRIES = "\n".join(
    ["ferry to | seats | built | owner"]
    + [f"{port} | {20 + 16 * at % 75} | {1950 + 37 * at % 61} | {OWNERS[at % 3]}" for at, port in enumerate(PORTS)]
)
PUMPS = "\n".join(
    json.dumps({"pump": f"P{10 + at}", "place": PORTS[at * 3 % 20], "bar": 30 + 7 * at % 20, "state": state})
    for at, state in enumerate((["stands"] + ["runs"] * 4) * 8)
)
YACHTS = "\n".join(
    ["name,owner,built,length,harbour"]
    + [f"{name},{OWNERS[at % 3]},{1979 + 5 * at % 23},{8 + at},{PORTS[at]}" for at, name in enumerate(NAMES)]
)
SAID = (
    ("the pump was oiled; it runs again", "upkeep"),
    ("a boat came in late, with wet sails and no lamp", "harbour"),
    ("paint is needed for the mast", "upkeep"),
    ("two guests stayed for one night and left after breakfast", "house"),
)
WRITERS = ("Orla", "Bex", "Tam", "Ines", "Mika")
RARE = {7: "the anchor is now kept in the shed of Ivo", 18: "a seal lay on the pier", 25: "tea is 2 euros again"}
NOTES = "\n".join(
    f"{1 + at} May {7 + at * 7 % 12}:30 [{mark}] {who}: {RARE.get(at, said)}"
    for at, (who, (said, mark)) in enumerate(zip((WRITERS * 20)[::3], SAID * 8, strict=False))
)
LIST = """found = [each["text"] for each in records if "Tam" in each["text"] and "house" in each["text"]]
print(question, "->", len(found), found)"""


ROWS_RUNS = (
    over_text(
        "fact",
        FERRIES,
        "How many seats are there on the ferry to Sund?",
        "68",
        ("a number of seats", "Seats", "the number of seats on the ferry to Sund"),
        [],
        ("68",),
    ),
    over_records(
        "count",
        FERRIES,
        "How many ferries of Bo Ek have more than 50 seats?",
        "4",
        ("a number of ferries", "Ferries", "the ferries of Bo Ek with more than 50 seats"),
        (
            "owner is Bo Ek, seats are more than 50",
            'each["owner"] == "Bo Ek" and int(each["seats"]) > 50',
            "seats",
        ),
        "The count is 4.",
        name="ferry to",
    ),
    over_text(
        "fact",
        PUMPS,
        "At which place does pump P17 stand? It is for the log.",
        "Teal",
        ("a place", "Places", "the place of pump P17"),
        [],
        ("Teal",),
    ),
    over_records(
        "list",
        YACHTS,
        "Which yachts did Ines Roth have built before 1990?",
        "Loon, Auk",
        ("yachts", "Yachts", "the yachts that Ines Roth had built before 1990"),
        (
            "owner is Ines Roth, built is before 1990",
            'each["owner"] == "Ines Roth" and int(each["built"]) < 1990',
            "built",
        ),
        "Two are left.",
        name="name",
    ),
    over_text(
        "fact",
        YACHTS,
        "Who is the owner of the Gull?",
        "Tam Hale",
        ("a person", "Persons", "the owner of the Gull"),
        [],
        ("Tam Hale",),
    ),
    over_records(
        "list",
        FERRIES,
        "What is the newest ferry of Tam Hale?",
        "Kemi",
        ("the newest ferry", "Ferries", "the ferries of Tam Hale"),
        ("owner is Tam Hale. I sort them by built", 'each["owner"] == "Tam Hale"', "built"),
        "The newest has the latest year: Kemi, 2002.",
        name="ferry to",
    ),
    over_text(
        "comparison",
        FERRIES,
        "Which ferry was built first, that to Hov or that to Moss? Only the name.",
        "Hov",
        ("a ferry", "Ferries", "the year of the ferry to Hov, and that of the ferry to Moss"),
        ["When was the ferry to Hov built?", "When was the ferry to Moss built?"],
        ("1976", "1978"),
        ("The first one has the earlier year.", chosen("min", "years", Hov=1976, Moss=1978)),
    ),
    over_records(
        "count",
        PUMPS,
        "How many pumps stand still in Aldo?",
        "2",
        ("a number of pumps", "Pumps", "the pumps in Aldo that stand"),
        ("place is Aldo, state is stands", 'each["place"] == "Aldo" and each["state"] == "stands"', "bar"),
        "The count is 2.",
        name="pump",
    ),
    over_text(
        "fact",
        YACHTS,
        "Tell me how long the Skua is.",
        "12",
        ("a length", "Lengths", "the length of the Skua"),
        [],
        ("12",),
    ),
)

ENTRIES_RUNS = (
    over_records(
        "count",
        NOTES,
        "What is the number of notes on upkeep that Bex wrote? Only the number, please.",
        "3",
        ("a number of notes", "Notes", "the notes of Bex on upkeep"),
        ("the text has Bex and upkeep", '"Bex" in each["text"] and "upkeep" in each["text"]', ""),
        "The count is 3.",
    ),
    over_text(
        "fact",
        NOTES,
        "Where is the anchor kept? It is for the log.",
        "in the shed of Ivo",
        ("a place", "Places", "the place of the anchor"),
        [],
        ("in the shed of Ivo",),
    ),
    Run(
        "list",
        NOTES,
        "Name the days on which Tam wrote of the house.",
        "20 May",
        (
            (LOOK_WORDS.format("days", "Notes"), LOOK),
            (
                "I keep the notes of Tam on the house: the text has Tam and house.",
                LIST,
            ),
            ("It asks for days. One is left.", 'SUBMIT(answer="20 May")'),
        ),
    ),
    over_text(
        "fact",
        NOTES,
        "Who saw a seal?",
        "Mika",
        ("a person", "Persons", "the one who saw a seal"),
        [],
        ("Mika",),
    ),
    over_records(
        "count",
        NOTES,
        "How many of the notes of Orla are on the harbour?",
        "2",
        ("a number of notes", "Notes", "the notes of Orla on the harbour"),
        ("the text has Orla and harbour", '"Orla" in each["text"] and "harbour" in each["text"]', ""),
        "The count is 2.",
    ),
)
