"""Images and texts that describe them: contrastive losses over the global batch (CLIP, SigLIP)."""
