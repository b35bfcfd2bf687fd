"""What must survive: model files, the spool of uploads, the journal of rounds, artifacts, a site's own update.

Model files (`safetensors_files`) are safetensors whose data section is the flat buffer that travels, so a checkpoint is
broadcast as it lies. Uploads land in the `spool`; `combination` folds them into the next model tile by tile; the
`journal` is the truth about rounds; `artifacts` is what users download; `retained` keeps a site's update until its
round is committed. All is read and written at positions into reused buffers: nothing is mapped, no model is in memory.

All calls block: run those that touch whole models in a thread.
"""
