"""Recipe section `training`: the trainer, its optimizer and its callbacks."""
