"""Record many modalities, deploy an RGB camera: cross-modal distillation for video action recognition, told in notebooks

Modules:

- `moddist.cockpit`: While several teachers teach: who is heard at which class, what a teacher is worth, and whether the parts of the loss pull the same way.
- `moddist.maps`: What a teacher sees and what its students make of it, clip by clip: computed once, kept together, let go when there is no room.
- `moddist.page`: The inspector as one file: real and hallucinated feature maps of some clips, with controls, that opens from disk on any computer.
- `moddist.viz`: Figures of what a student makes up against what its teacher really sees: one shared colour scale, a signed difference, and numbers that say how well they agree.
- `moddist.widgets`: Move through clips, frames, layers and channels and see what the student makes up against what its teacher sees: live in Jupyter, and as one file that opens anywhere."""

__version__ = "0.1.0"
