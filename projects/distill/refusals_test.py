"""Mistakes in teachers, the student and their distance are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.distill.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.teachers=[]", "config.teachers must name one teacher or more"),
    ("config.teachers=['prof', 'student']", "config.teachers 'student' cannot be a teacher's name"),
    ("config.prof_name=vitt", "config.prof_name: there is no 'vitt' (did you mean 'vit'?)"),
    ("config.prof_init=nowhere.npz", "config.prof_init: "),
    ("config.student.dept=3", "config.student.dept is no key of the model vit"),
    ("config.distance=kll", "config.distance: there is no 'kll' (did you mean 'kl'?)"),
    ("config.distance_kw.t=0", "config.distance_kw.t must be a number above 0, got 0"),
    ("config.loss=softmax_xent", "config.loss is no key of distillation"),
  ],
)
