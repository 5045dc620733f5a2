"""Weights in files: reading them safely, writing them whole, and translating between layouts.

`reading` and `writing` are for any checkpoint, `training` for those that a training resumes from. The `sam3*` modules
know SAM3's weights: its keys in Meta's and in Hugging Face's layout, the conversion, the trunk. `student_keys` maps the
published students' keys to timm's. `standardisation` is how a student's targets were scaled, stored with its weights.
"""
