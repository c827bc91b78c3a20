"""Training of the embedded pair and of its judge, from any seed; nothing else needs it."""
