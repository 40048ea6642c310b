"From what a person types or points at to what the kit does: the command line, the explorer, the audit."
