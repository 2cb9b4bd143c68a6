"""The main job, stage by stage (pipeline.py), and the toy models of the chapter on instruction tuning (instruct.py)."""
