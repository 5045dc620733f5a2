"""The networks: teachers, students and their heads.

Read `students` and `heads` first: the tables of everything that has a name, importable without PyTorch. `student`
builds a student from them, `student_files` reads one from any file, `build` and `initial_weights` give one its first
weights, `fuse` prepares one for inference, `hf_backbone` (with `hf_config`) puts one into transformers' SAM3. `teacher`
is the frozen encoder that students imitate: SAM3's trunk, or an ONNX model.
"""
