"""How a conversion is judged by running it: both models on the same inputs, every operation seen, one page about it."""
