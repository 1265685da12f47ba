"""The host's memory: how much there is, who has it, and the models that are held in it."""
