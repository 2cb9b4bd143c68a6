"""What keeps a run: folders, atomic files, tensors on disk, settings, errors, several processes. No idea of the
notes."""
