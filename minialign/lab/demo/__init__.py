"""The main job, stage by stage (pipeline.py), and what the chapter on instruction tuning pretrains (instruct.py)."""
