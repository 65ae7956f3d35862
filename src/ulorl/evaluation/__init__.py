"""Evaluation of the present weights of an engine: avg@k with its interval over problems."""

from ulorl.evaluation.avg_at_k import Evaluation, EvaluationSettings, evaluate

__all__ = ["Evaluation", "EvaluationSettings", "evaluate"]
