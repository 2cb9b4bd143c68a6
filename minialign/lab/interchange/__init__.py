r"""Other people's files, in and out.

    folder.py            published checkpoint folders: settings, weights, tokenizer
    published.py         whichever model of lab/pretrained a folder holds; a BERT back into one
    peft_library.py      the PEFT library's adapters; peft_library_biases.py the same for BitFit
    gguf.py              the file format of llama.cpp; gguf_llama.py a Llama out of it
    promptsource.py      templates of the PromptSource collection; tasks_file.py a reader's own tasks
"""
