"""What a run may spend and what it has spent: ledger, metering of model calls, facts about LMs."""
