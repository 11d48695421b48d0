"""The main job, `icrl-gym evaluate`: one policy, its values in context, the truth and its critic."""
