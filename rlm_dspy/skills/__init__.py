"""Skills: folders of instructions and functions that a model loads when it needs them.

skills/
    invoices/
        SKILL.md            front matter with name and description, then the instructions
        tools.py            functions, which run in the REPL
        references/vat.md   files that the instructions name

RLM("folder, question -> total: float", tools=[Skills("skills")])
"""

from rlm_dspy.skills.skills import Skills

__all__ = ["Skills"]
