"""The teacher, the students, and the student as a Hugging Face backbone."""
