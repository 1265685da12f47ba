"""How it all is, for whoever asks: the status document and what it is made of."""
