"""DeiT in JAX/Flax: vision transformers with a distillation token."""
