"""Self-distillation as in DINOv2 (arXiv:2304.07193): heads, targets of the teacher, losses, masks."""
