"""Recipe section `hub`: access, upload, download and the model card."""
