r"""Real weights in hand-written models, out of files that other people publish (lab/interchange). In reading order:

    gpt2.py              GPT-2 in our own decoder
    bert.py              BERT; minilm.py the sentence encoder that is one; sentence_vectors.py distils it
    t5.py                T5; rms_norm.py its normalisation; masks.py who may look at whom
    llama.py             Llama
    smollm2.py           SmolLM2-135M-Instruct; chat.py talks with it
"""
