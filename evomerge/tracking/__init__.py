"""Showing a run elsewhere while it goes on: TensorBoard, Weights & Biases, MLflow. None of them decides anything."""
