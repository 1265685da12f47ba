"""Files that payloads name by URLs: whoever named them is not trusted, so neither is what the name leads to."""
