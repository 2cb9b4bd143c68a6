r"""Human feedback: people compare completions, a reward model learns what they like, a policy learns to please it at a
price. In reading order:

    comparisons.py       pairs of completions and which one was preferred
    rouge.py             the metric that they should replace
    ranked.py            comparisons as rows of ids
    reward_model.py      one number for a completion, learned from choices: Bradley and Terry's model; several as one
    reward_checks.py     how far to trust it, and which answers it likes beyond their worth
    kl.py                how far a policy has moved from its reference, and the price of it
    ppo.py               the policy answers, each token gets its advantage, the clipped update: all of PPO
    pretraining_mix.py   beside it a little pretraining text, so that less is forgotten
    rollout_table.py     a completion of PPO's as a table
    best_of_n.py         using the reward model without any training of the policy
    grpo.py              rewards that can be checked: an answer is judged by its group, no value function
    dpo.py               the same aim without reward model and sampling
    kto.py               the same from single answers that somebody liked or did not
    equal_length.py      win rates that length cannot buy
"""
