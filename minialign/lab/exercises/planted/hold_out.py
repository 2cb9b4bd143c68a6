r"""The split of T0's tasks, with one bug."""


def hold_out(cluster_of, held_out):
    """cluster_of: {task: its cluster}; held_out: clusters. Returns (tasks to train on, tasks to be examined on), both
    sorted."""
    train, examined, seen = [], [], set()
    for task in sorted(cluster_of):
        if cluster_of[task] in held_out and cluster_of[task] not in seen:
            examined.append(task)
            seen.add(cluster_of[task])
        else:
            train.append(task)
    return train, examined
