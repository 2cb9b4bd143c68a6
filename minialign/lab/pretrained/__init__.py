r"""Real weights in hand-written models, read from the files that other people publish (lab/interchange). In reading
order:

    gpt2.py              GPT-2 in our own decoder
    bert.py              BERT; minilm.py the sentence encoder that is one; sentence_vectors.py distils it
    t5.py                T5; t5_layers.py its parts
    llama.py             Llama; rms_norm.py its normalisation; masks.py who may look at whom
    smollm2.py           SmolLM2-135M-Instruct; chat.py talks with it
    perplexity.py        how well a real model predicts a text
"""
