//! A teacher from TorchScript archives, as OpenAI publishes its CLIP: small ones made by real torch
//! (scripts/make_torch_goldens.py), in half precision.

use beit2::tokenizer::teachers::{Teacher, TeacherConfig, TeacherKind};
use beit2::weights;
use burn::tensor::{DType, Tensor};

use super::checks::{check, golden, skip};
use super::folder::{Inner, root};

#[test]
fn golden_a_teacher_from_torchscript() {
    golden(|| {
        let folder = root().join("torch");
        if !folder.is_dir() {
            return skip(format!("{} is not there", folder.display()));
        }
        let device = Default::default();
        let recorded = beit2_weights::read(&folder.join("expected.safetensors")).unwrap();
        let load = |name: &str| {
            let tensor = recorded.tensor(name).unwrap();
            burn::tensor::TensorData::new(tensor.to_f32(), tensor.shape().to_vec())
        };
        let expected: Vec<f32> = load("output/patches").to_vec().unwrap();
        for name in ["scripted.pt", "traced.pt"] {
            let file = weights::open(folder.join(name)).unwrap();
            let config =
                TeacherConfig { kind: Some(TeacherKind::Clip), heads: Some(2), ..TeacherConfig::default() };
            let teacher = Teacher::<Inner>::from_file(&config, file, DType::F32, &device).unwrap();
            let x = Tensor::<Inner, 4>::from_data(load("input/images"), &device);
            let found: Vec<f32> = teacher.features(x).into_data().convert::<f32>().to_vec().unwrap();
            let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let far = found.iter().zip(&expected).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
            check(found.len() == expected.len() && far < 2e-5 * scale, || {
                format!("{name}: {far} of {scale}")
            });
        }
    });
}
