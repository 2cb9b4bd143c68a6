r"""Real weights in hand-written models, read from the files that other people publish. In reading order:

    folder.py      checkpoint folders: settings, weights, tokenizer
    gpt2.py        GPT-2 in our own decoder
    bert.py        BERT; minilm.py the sentence encoder that is one; bert_folder.py the way back into a folder
    t5.py          T5; t5_layers.py its parts
    llama.py       Llama; rms_norm.py its normalisation; masks.py who may look at whom
    published.py   whichever of these a folder holds
    gguf.py        the file format of llama.cpp; gguf_llama.py a Llama out of it
    smollm2.py     SmolLM2-135M-Instruct; chat.py talks with it
    perplexity.py  how well a real model predicts a text
"""
