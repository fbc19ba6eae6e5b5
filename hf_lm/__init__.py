"""hf_lm: one JSON recipe in; a trained, measured causal language model out.

Reading order, which is the way of the data:
  run            the main path and command line: a table of contents
  options        the options of a run
  fit            the stages joined: train, save, measure
  cli            the thin `hf-lm` sub-commands
  use            those about a finished model
  recipe         JSON -> frozen pydantic models; every key, default and check
  dataset        sources -> documents -> shifted blocks
  tokenizer      load a tokenizer, or train one on the recipe's text
  model_config   GPT-2's words for every supported family
  dropout        dropout for CPUs
  attention      causal attention for whole blocks, without a mask
  lora           adapters in place of pretrained weights
  loss           the mean loss of hidden states, without their logits
  model          build or load the network
  muon           Muon for matrices and AdamW for the rest, in one optimizer
  optimizer      parameter groups, Muon / AdamW / Adam / SGD, schedules
  changes        what a run may be continued with: free, with a note, refused
  lock           one run a folder
  launcher       whether a launcher started this process, and its end
  signals        SIGTERM and its like, noted or raised
  state          a trainer's state as safetensors and JSON
  checkpoint     a checkpoint is whole and verified, or not there
  foreign        what no run of ours would have written is refused
  stopping       a signal ends all processes at the same step
  resume         the Trainer that saves and continues through both
  clock          seconds and tokens a second
  finite         a step whose gradient is not finite is not taken
  trainer        LMTrainer: overridden hooks only
  evaluation     loss, perplexity, accuracy, bits per byte, samples
  metrics        what was measured, as lines
  machine        threads, precision and memory of this computer
  plan           what a run will cost, before it starts
  micro_batch    the largest micro-batch that fits a GPU, by trying
  kernels        how it is computed: attention, compiled blocks, and why
  run_folder     what a run leaves on disk, and how it is continued
  status         what a run is doing, on one screen
  card           the model card, the curve, and the recipe for strangers
  hub            publish to the Hub; read a recipe back from it
  uploads        checkpoints on the Hub while training goes on
  publish        a run joined with both: its model described and uploaded
  export         a model for ONNX Runtime, checked against it
  reproduce      a published model beside a run of its recipe
  guarded        a command's mistakes as lines and an exit code
  mishaps        memory that runs out, killed workers, failing trackers
  progress       what a person watches: loss, rate, speed, time left
  patient        nothing that is printed ends a run
  console        what a person reads: the plan and the end
  errors         user-facing errors and exit codes
"""

__version__ = "0.1.0"
