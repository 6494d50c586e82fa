//! What the Vulkan backend needs: the loader, and a driver that says where it is in a JSON file.

use std::env;
use std::ffi::{OsString, c_int};
use std::fs;
use std::path::PathBuf;

use super::{Need, Opened, keep, open, place};

const LOADER: &str = "Vulkan loader";
const DRIVERS: &str = "Vulkan drivers";
const PURPOSE: &str = "vulkan, wgpu";

pub(super) fn needs() -> [Need; 2] {
    [loader(), drivers(&places(|name| env::var_os(name)))]
}

fn loader() -> Need {
    const GET: &str = "apt install libvulkan1 (Debian, Ubuntu) or vulkan-loader (Fedora)";
    match open(&["libvulkan.so.1".to_owned()]) {
        Opened::Nowhere => Need::missing(LOADER, PURPOSE, format!("libvulkan.so.1 is missing: {GET}")),
        Opened::No { file, why } => {
            Need::missing(LOADER, PURPOSE, format!("{file} cannot be opened ({why}): {GET}"))
        }
        Opened::Yes { library, file } => {
            // SAFETY: vulkan_core.h declares it so; it is the one function that needs no instance.
            let version = unsafe {
                let ask = library
                    .get::<unsafe extern "system" fn(*mut u32) -> c_int>(b"vkEnumerateInstanceVersion");
                let mut number = 0;
                ask.ok().filter(|ask| ask(&mut number) == 0).map(|_| number)
            };
            let place = place(&file);
            keep(library);
            let version_text =
                |number: u32| format!("{}.{}.{}", number >> 22 & 0x7f, number >> 12 & 0x3ff, number & 0xfff);
            Need::works(LOADER, PURPOSE, place, version.map(version_text))
        }
    }
}

/// Where the loader looks for drivers: files that a variable names, or all JSON files of some folders.
enum Places {
    Files(&'static str, Vec<PathBuf>),
    Folders(Vec<PathBuf>),
}

/// The loader's order (its documentation, "Driver discovery on Linux").
fn places(variable: impl Fn(&str) -> Option<OsString>) -> Places {
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if let Some(list) = variable(name).filter(|list| !list.is_empty()) {
            return Places::Files(name, env::split_paths(&list).collect());
        }
    }
    let home = variable("HOME").map(PathBuf::from);
    let list = |name: &str, default: &str| -> Vec<PathBuf> {
        let set = variable(name).filter(|list| !list.is_empty());
        env::split_paths(&set.unwrap_or_else(|| default.into())).collect()
    };
    let user = |name: &str, below: &str| {
        let set = variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        set.or_else(|| home.as_ref().map(|home| home.join(below)))
    };
    let mut roots: Vec<PathBuf> = user("XDG_CONFIG_HOME", ".config").into_iter().collect();
    roots.extend(list("XDG_CONFIG_DIRS", "/etc/xdg"));
    roots.push("/etc".into());
    roots.extend(user("XDG_DATA_HOME", ".local/share"));
    roots.extend(list("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    Places::Folders(roots.into_iter().map(|root| root.join("vulkan/icd.d")).collect())
}

fn drivers(places: &Places) -> Need {
    const GET: &str =
        "apt install mesa-vulkan-drivers (AMD, Intel, software), or NVIDIA's driver with its libnvidia-gl";
    let (files, where_) = match places {
        Places::Files(variable, files) => {
            (files.clone(), format!("none of the files in {variable} is there"))
        }
        Places::Folders(folders) => {
            let inside = |folder: &PathBuf| fs::read_dir(folder).into_iter().flatten();
            let mut files: Vec<PathBuf> =
                folders.iter().flat_map(inside).filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
            files.sort();
            (files, "no driver has a file in /etc/vulkan/icd.d or /usr/share/vulkan/icd.d".to_owned())
        }
    };
    let there: Vec<String> =
        files.iter().filter(|file| file.is_file()).map(|file| file.display().to_string()).collect();
    match there.is_empty() {
        true => Need::missing(DRIVERS, PURPOSE, format!("{where_}: {GET}")),
        false => Need::works(DRIVERS, PURPOSE, there.join(", "), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_looked_for_where_the_loader_looks() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let file = root.join("vulkan/icd.d/some_icd.json");
        let xdg = |name: &str| matches!(name, "XDG_DATA_DIRS" | "XDG_DATA_HOME").then(|| root.clone().into());
        let Places::Folders(folders) = places(xdg) else { panic!("no variable names files") };
        assert!(
            folders.contains(&root.join("vulkan/icd.d")) && folders.contains(&"/etc/vulkan/icd.d".into())
        );

        let only = Places::Folders(vec![root.join("vulkan/icd.d")]);
        assert!(drivers(&only).problem.unwrap().contains("mesa-vulkan-drivers"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "{}").unwrap();
        fs::write(root.join("vulkan/icd.d/readme.txt"), "").unwrap();
        assert_eq!(drivers(&only).found, Some(file.display().to_string()));

        let named = |name: &str| (name == "VK_ICD_FILENAMES").then(|| "/nowhere/x.json".into());
        let named = drivers(&places(named));
        assert!(named.found.is_none() && named.problem.unwrap().contains("VK_ICD_FILENAMES"));
    }
}
