r"""Human feedback: people compare answers, a reward model learns what they like, a policy learns to please it at a
price. In reading order:

    comparisons.py       pairs of answers and which one was preferred
    rouge.py             the metric that they should replace
    ranked.py            comparisons as rows of ids
    reward_model.py      one number for an answer, learned from choices: Bradley and Terry's model
    reward_checks.py     how far to trust it; ensemble.py several of them as one
    best_of_n.py         using it without any training of the policy
    kl.py                how far a policy has moved from its reference, and the price of it
    rollout.py           the policy answers, and all that is needed is written down
    gae.py               by how much each token was better than expected
    ppo.py               the clipped update; learner.py one step of it; pretraining_mix.py so that less is forgotten
    dpo.py               the same aim without reward model and sampling
    equal_length.py      win rates that length cannot buy
    hacking.py           answers that the reward model likes beyond their worth
"""
