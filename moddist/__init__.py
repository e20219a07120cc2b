"""Record many modalities, deploy an RGB camera: cross-modal distillation for video action recognition, told in notebooks

Modules:

- `moddist.viz`: Figures of what a student makes up against what its teacher really sees: one shared colour scale, a signed difference, and numbers that say how well they agree.
- `moddist.widgets`: Move through clips, frames, layers and channels and see what the student makes up against what its teacher sees: live in Jupyter, and as one file that opens anywhere."""

__version__ = "0.1.0"
