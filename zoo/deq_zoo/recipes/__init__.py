"""How each preset of each model is trained: one module per model, one mapping in each."""
