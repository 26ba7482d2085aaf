"""What can be wrong with an installation, each as a function from nothing to findings; `pipeline.doctor` asks them."""
