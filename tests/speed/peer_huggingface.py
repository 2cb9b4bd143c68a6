"""The peers of sampling and of PPO: transformers' GPT-2 with its `generate`, and TRL's PPO trainer.

Both get what is best for them on a CPU: no end token to look for, no bfloat16 (TRL's default), no gradient
checkpointing, no file written, no dropout, and torch's one-kernel GELU unless it is told otherwise (the library's
default for GPT-2 is a formula of eight small operations).
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from minialign.tokenizer import END, PAD
from minialign.transformer import TransformerConfig

transformers.logging.set_verbosity_error()


def gpt2_config(config: TransformerConfig, gelu: str, **more) -> GPT2Config:
    """The library's configuration of the shape that ours describes, with its activation `gelu` or `gelu_new`."""
    sizes = {"vocab_size": config.vocabulary, "n_positions": config.context, "n_embd": config.width,
             "n_layer": config.layers, "n_head": config.heads}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": gelu}
    return GPT2Config(**sizes, **plain, bos_token_id=None, eos_token_id=None, pad_token_id=PAD, **more)


def gpt2(config: TransformerConfig, gelu: str) -> GPT2LMHeadModel:
    """An untrained language model of that shape, in evaluation mode."""
    return GPT2LMHeadModel(gpt2_config(config, gelu)).eval()


@torch.no_grad()
def sample(model: GPT2LMHeadModel, prompts: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
    """(B, R) sampled ids and their log-probabilities, nats, after (B, P) prompts without padding."""
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    kept = {"output_scores": True, "return_dict_in_generate": True}
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    written = model.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=True, pad_token_id=PAD,
                             **length, **kept, **whole)
    logprobs = model.compute_transition_scores(written.sequences, written.scores, normalize_logits=True)
    return written.sequences[:, prompts.shape[1] :], logprobs


class Clock(TrainerCallback):
    """How long the last training took, from the first line of its first update to the last of its last."""

    def on_train_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_train_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.began


def trl_update(
    config: TransformerConfig, gelu: str, prompts: Tensor, new_tokens: int, epochs: int, minibatch: int,
    learning_rate: float
) -> Callable[[], float]:
    """A function that makes one whole PPO update with TRL's trainer and returns its seconds, set-up not counted.

    Args:
        config: shape of policy, reference, value and reward model, each with a trunk of its own; gelu: their
            activation.
        prompts: (B, P) ids, the prompts of every update.
        new_tokens: R, length of all answers: there is no stop token.
        epochs, minibatch: passes over a rollout, answers an optimizer step.
        learning_rate: of policy and value model.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({f"t{i}": i for i in range(config.vocabulary)}, unk_token="t3")),
        pad_token=f"t{PAD}", eos_token=f"t{END}"
    )
    scalar = gpt2_config(config, gelu, num_labels=1)
    clock = Clock()
    settings = PPOConfig(
        output_dir=tempfile.gettempdir(),
        # with gradient accumulation TRL would step the optimizer once an epoch only
        per_device_train_batch_size=len(prompts),
        gradient_accumulation_steps=1,
        num_mini_batches=len(prompts) // minibatch,
        num_ppo_epochs=epochs,
        total_episodes=len(prompts),  # of one call of train(): one update
        response_length=new_tokens,
        temperature=1.0,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=GPT2LMHeadModel(gpt2_config(config, gelu)),
        ref_model=GPT2LMHeadModel(gpt2_config(config, gelu)),
        reward_model=GPT2ForSequenceClassification(scalar),
        value_model=GPT2ForSequenceClassification(scalar),
        train_dataset=Dataset.from_dict({"input_ids": prompts.tolist()}),
        callbacks=[clock],
    )

    def update() -> float:
        with redirect_stdout(io.StringIO()):  # its metrics
            trainer.train()
        return clock.seconds

    return update
