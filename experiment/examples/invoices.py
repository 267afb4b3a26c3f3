"""Read invoices into typed rows (PDF: extra `documents`): `python invoices.py data/invoices`."""

import sys
from datetime import date
from decimal import Decimal

import dspy
from pydantic import BaseModel

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.models import choose_model


class Invoice(BaseModel):
    number: str
    seller: str
    issued: date
    total: Decimal


class ReadInvoice(dspy.Signature):
    """Read one invoice. The total includes tax."""

    text: str = dspy.InputField()
    invoice: Invoice | None = dspy.OutputField(desc="None if the text is no invoice")


class ReadFolder(dspy.Signature):
    """Read every file of the folder with `read_invoice`."""

    folder: Files = dspy.InputField()
    rows: dict[str, Invoice] = dspy.OutputField(desc="by file name; no row for a file that is no invoice")


if __name__ == "__main__":
    dspy.configure(lm=choose_model())
    read = RLM(ReadFolder, subs=[ReadInvoice], limits=Limits(max_llm_calls=500))
    print(*read(folder=Files.open(sys.argv[1])).rows.items(), sep="\n")
