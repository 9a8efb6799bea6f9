"""Baselines for PSEC: composition at other levels, and policies without skills.

All of them are learnt by `learn`, saved by `save`, and act through `Policy.act`.

- `NSEC`, `ASEC`: `noise.NoiseComposition` and `actions.ActionComposition` over the base and a policy learnt
  from the target's data alone.
- `NSEC (LoRA)`, `ASEC (LoRA)`: the same over the base and the base with each skill; in safe control over the
  base with the reward skill and the base with the safety skill, as in the release.
- `PSEC (MLP)`: `ComposedPolicy` over skills that were trained with `GrowthConfig(full=FullConfig())`.
- `Scratch`: a `DiffusionPolicy` from new weights on the target's data; `Joint`: on the source's as well.
- `BC`, `IQL`: `direct.DirectPolicy`, cloned, or with IQL's weights.
"""
