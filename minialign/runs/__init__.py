"""What keeps a run: folders, atomic files, tensors on disk, settings, errors, processes. No idea of the notes."""
