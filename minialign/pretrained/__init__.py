"""Real weights in hand-written models: T5, BERT and MiniLM, GPT-2, Llama and SmolLM2, from the files that other people publish."""
