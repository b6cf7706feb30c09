use super::*;

fn tensors() -> Vec<(String, Tensor)> {
    let values = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([4, 6]) - 5.5;
    let kinds = [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double, Kind::Int64, Kind::Uint8];
    kinds.iter().map(|kind| (format!("{kind:?}"), values.abs().to_kind(*kind))).collect()
}

#[test]
fn written_weights_and_metadata_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &tensors(), &[("note", "größer")]).unwrap();
    let weights = Weights::find(dir.path()).unwrap();
    for (name, tensor) in tensors() {
        assert!(weights.read(&name).unwrap().equal(&tensor), "{name}");
        assert!(weights.read(&name).unwrap().equal(&tensor), "{name}: again, after its pages were released");
        assert_eq!(weights.shape(&name), Some([4, 6].as_slice()));
    }
    let bytes: &'static [u8] = Box::leak(std::fs::read(&path).unwrap().into_boxed_slice());
    let (embedded, texts) = Weights::embedded("ours", bytes).unwrap();
    assert_eq!((texts["note"].as_str(), texts["format"].as_str()), ("größer", "pt"));
    assert!(embedded.read("Half").unwrap().equal(&weights.read("Half").unwrap()));
}

#[test]
fn split_divides_and_renames_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &tensors(), &[]).unwrap();
    let whole = Weights::open(&path).unwrap().read("BFloat16").unwrap();
    let mut weights = Weights::open(&path).unwrap();
    let part = |name: &str, shape: &[i64]| (name.to_string(), shape.to_vec());
    weights.split("BFloat16", &[part("first", &[3, 6]), part("last", &[6])]).unwrap();
    weights.split("first", &[part("renamed", &[1, 18])]).unwrap();
    assert_eq!(weights.shape("BFloat16").or(weights.shape("first")), None);
    assert!(weights.read("renamed").unwrap().equal(&whole.narrow(0, 0, 3).reshape([1, 18])));
    assert!(weights.read("last").unwrap().equal(&whole.get(3)));

    let error = weights.split("Float", &[part("less", &[4, 5])]).unwrap_err();
    assert_eq!(error.causes(), ["weight `Float`: expected 20 values, got 24, of shape [4, 6]"]);
    let error = weights.split("Half", &[part("last", &[4, 6])]).unwrap_err();
    assert_eq!(error.causes(), ["duplicate weight `last`"]);
}

#[test]
fn check_reports_all_mismatches_in_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &tensors(), &[]).unwrap();
    let weights = Weights::open(&path).unwrap();
    let expect =
        |name: &str, shape: &[i64], required| Expected { name: name.into(), shape: shape.into(), required };
    let mut expected: Vec<Expected> = ["Float", "Half", "BFloat16", "Double", "Uint8"]
        .iter()
        .map(|name| expect(name, &[4, 6], *name != "Uint8"))
        .collect();
    expected.push(expect("Int64", &[4, 6], false));
    expected.push(expect("computed", &[1], false));
    weights.check(&expected).unwrap();

    expected[0].shape = vec![6, 4];
    expected.retain(|e| e.name != "Uint8");
    expected.extend((0..30).map(|i| expect(&format!("layer.{i:02}"), &[1], true)));
    expected.iter_mut().find(|e| e.name == "Int64").unwrap().required = true;
    let error = weights.check(&expected).unwrap_err();
    assert!(error.message().ends_with("30 missing, 1 unexpected, 1 wrong shape, 1 wrong type"), "{error}");
    assert!(
        error.causes()[0].starts_with("missing: `layer.00`, ") && error.causes()[0].ends_with(" and 10 more")
    );
    assert_eq!(
        error.causes()[1..],
        [
            "unexpected: `Uint8`",
            "wrong shape: `Float` expected [6, 4], got [4, 6]",
            "wrong type: `Int64` expected f32, f16, bf16 or f64, got I64",
        ]
    );
}

#[test]
fn find_without_weights_names_the_expected_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = Weights::find(dir.path()).err().unwrap();
    assert!(error.hints()[0].contains("`diffusion_pytorch_model.safetensors`"), "{error}");
}

#[test]
fn find_prefers_safetensors_to_pickles() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), "no pickle").unwrap();
    assert!(Weights::find(dir.path()).is_err());
    write(&dir.path().join("pytorch_model.safetensors"), &tensors(), &[]).unwrap();
    assert!(Weights::find(dir.path()).is_ok());
}

#[test]
fn plan_records_weights_and_allocates_none() {
    let mut plan = Store::plan();
    assert!(!plan.take("a", &[1 << 40], Init::Normal).unwrap().defined());
    plan.computed("b", &[2]);
    let expected = plan.expected();
    assert_eq!((expected[0].shape.as_slice(), expected[0].required), ([1i64 << 40].as_slice(), true));
    assert_eq!((expected[1].name.as_str(), expected[1].required), ("b", false));
}

/// Writes weights called `names` to one file or to shards with an index, and returns the names that are read back.
fn names_read(names: &[&str], shards: usize) -> Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let weights: Vec<(String, Tensor)> = names
        .iter()
        .map(|name| ((*name).to_string(), Tensor::zeros([1], (Kind::Float, Device::Cpu))))
        .collect();
    if shards == 1 {
        write(&dir.path().join("model.safetensors"), &weights, &[]).unwrap();
    } else {
        let mut map = serde_json::Map::new();
        for (index, part) in weights.chunks(weights.len().div_ceil(shards)).enumerate() {
            let file = format!("model-{index}.safetensors");
            write(&dir.path().join(&file), part, &[]).unwrap();
            map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        }
        let index = serde_json::json!({"weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    }
    let weights = Weights::find(dir.path())?;
    for name in weights.names() {
        assert_eq!(weights.read(name).unwrap().size(), [1]);
    }
    Ok(weights.names().map(String::from).collect())
}

#[test]
fn torch_wrappers_are_removed_from_names() {
    for shards in [1, 2] {
        for names in [
            ["module.a.weight", "module.b.0.bias"],
            ["_orig_mod.a.weight", "_orig_mod.b.0.bias"],
            ["module._orig_mod.a.weight", "module._orig_mod.b.0.bias"],
            ["_orig_mod.module.a.weight", "_orig_mod.module.b.0.bias"],
            ["module.module.a.weight", "module.module.b.0.bias"],
            ["_fsdp_wrapped_module.a._orig_mod.weight", "_fsdp_wrapped_module.b.0.bias"],
            ["a._orig_mod.weight", "b.0._checkpoint_wrapped_module.bias"],
            ["a.weight", "b._orig_mod.0._orig_mod.bias"],
            ["module._orig_mod.a.weight", "module._orig_mod.b._orig_mod.0.bias"],
        ] {
            assert_eq!(names_read(&names, shards).unwrap(), ["a.weight", "b.0.bias"], "{names:?}");
        }
    }
}

#[test]
fn torch_wrappers_of_some_weights_are_kept() {
    for names in [
        ["a.weight", "module.b.weight"],
        ["_orig_mod.a.weight", "b.weight"],
        ["a._orig_mod.weight", "a.bias"],
        ["a.module.weight", "b.module.weight"],
        ["module", "modules.a"],
    ] {
        assert_eq!(names_read(&names, 1).unwrap(), names, "{names:?}");
    }
}

#[test]
fn weight_with_and_without_wrapper_is_refused() {
    for names in [
        ["a.weight", "module.a.weight"],
        ["_orig_mod.a.weight", "a.weight"],
        ["b._orig_mod.weight", "b.weight"],
        ["module.a.weight", "module.module.a.weight"],
    ] {
        let error = names_read(&names, 1).unwrap_err().to_string();
        assert!(error.contains("duplicate weight") && error.contains("also named `"), "{error}");
    }
}

#[test]
fn torch_wrappers_are_removed_from_names_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    let tensor = Tensor::from_slice(&[7f32; 10]);
    for (shard, name) in ["module._orig_mod.a.weight", "module._orig_mod.b.0.bias"].into_iter().enumerate() {
        let file = format!("shard-{shard}.safetensors");
        write(&dir.path().join(&file), &[(name.into(), tensor.shallow_clone())], &[]).unwrap();
        map.insert(name.into(), file.into());
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let weights = Weights::find(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a.weight", "b.0.bias"]);
    assert!(weights.read("b.0.bias").unwrap().equal(&tensor));
}
